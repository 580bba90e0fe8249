"""Tables of the configuration. The environment is part of every key: production and beta share no object (IN-01).

An object's fields, named as in the API, are one JSON document; the columns beside it repeat what is looked up or
compared in SQL. ``documents`` holds the kinds whose behaviour belongs to later rooms: this room stores, checks and
exports them, and does nothing else with them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from openaudience.catalog.base import Base, Instant


class ObjectRow(Base):
    """Columns that every object has."""

    __abstract__ = True
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    pid: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    document: Mapped[dict[str, Any]] = mapped_column(JSON)


class PartnerRow(ObjectRow):
    """A client company; ``number`` is its pid."""

    __tablename__ = "partners"


class DataSourceRow(ObjectRow):
    """A data source (RT-201 … RT-218); ``number`` is the DPID. Owner 0: the global sources."""

    __tablename__ = "data_sources"
    id_type: Mapped[str] = mapped_column(String(32))
    active: Mapped[bool] = mapped_column(Boolean)


class FolderRow(ObjectRow):
    """A folder of the tree ``traits`` or ``segments`` (QL-601); parent 0 is the root, which has no row."""

    __tablename__ = "folders"
    tree: Mapped[str] = mapped_column(String(16), primary_key=True)
    parent: Mapped[int] = mapped_column(Integer)


class TraitRow(ObjectRow):
    """A trait (QL-301 … QL-310); ``number`` is the sid. ``dead_before``: see ``expiry.dead_before`` (QL-513)."""

    __tablename__ = "traits"
    dpid: Mapped[int] = mapped_column(Integer)
    folder: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(String(32))
    rule: Mapped[str | None] = mapped_column(Text)
    ttl: Mapped[int] = mapped_column(Integer)
    active: Mapped[bool] = mapped_column(Boolean)
    dead_before: Mapped[datetime | None] = mapped_column(Instant)

    __table_args__ = (Index("ix_traits_source", "environment", "dpid"),)


class DocumentRow(ObjectRow):
    """Any other object of a workspace file, by its key there (``segments``, ``dropoff.users``).

    Kinds that the API knows without a number (clients, drop-off users) have one here all the same.
    """

    __tablename__ = "documents"
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)

    __table_args__ = (Index("ix_documents_name", "environment", "kind", "name"),)


class SecretRow(Base):
    """A secret of an object, hashed or sealed (OP-36); the object's document holds the reference it was read by.

    ``kind`` and ``number`` as in ``documents``; ``form`` and ``value``: see ``secrets.Kept``.
    """

    __tablename__ = "secrets"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    field: Mapped[str] = mapped_column(String(64), primary_key=True)
    form: Mapped[str] = mapped_column(String(16))
    value: Mapped[str] = mapped_column(Text)


class RuleVersionRow(Base):
    """A change of a trait's rule: ``version`` counts from 0 at creation (QL-313, API-94)."""

    __tablename__ = "rule_versions"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    sid: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Instant)
    user: Mapped[str] = mapped_column(String(255))
    old: Mapped[str | None] = mapped_column(Text)
    new: Mapped[str | None] = mapped_column(Text)


class SequenceRow(Base):
    """The next number of an ID space. Traits and segments share ``sid``, data sources and merge rules ``dpid``."""

    __tablename__ = "sequences"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    next: Mapped[int] = mapped_column(BigInteger)


class RefoldRow(Base):
    """A trait whose qualifications the applier must fold anew: its TTL changed, or it was deleted (QL-312, QL-513)."""

    __tablename__ = "refolds"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    sid: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


class RetiredRow(Base):
    """A deleted trait or data source; what it held before ``at`` never comes back under the same number."""

    __tablename__ = "retired"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Instant)
