"""OpenAudience: self-hosted audience-data onboarding."""

__version__ = "0.1.0"
