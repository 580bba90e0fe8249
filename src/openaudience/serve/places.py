"""Where the drop-offs of an environment lie on this machine; the servers and the intake have to agree on it."""

from __future__ import annotations

from pathlib import Path

from openaudience.dropoff.uploads import UploadTree
from openaudience.home import Home

UPLOADS = "uploads"
DROP_FOLDER = "folder"


def upload_tree(home: Home, environment: str) -> UploadTree:
    """What FTP and SFTP clients see."""
    return UploadTree(home.environment(environment).root / UPLOADS)


def drop_folder(home: Home, environment: str) -> Path:
    """The local drop folder (IN-02): as the settings say, else in the home."""
    settings = home.settings.dropoff
    chosen = settings.beta_folder if environment == "beta" else settings.folder
    return Path(chosen) if chosen else home.environment(environment).root / DROP_FOLDER
