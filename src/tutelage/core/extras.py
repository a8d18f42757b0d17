"""Optional packages: imported here, by name, or refused with the extra to install."""

import importlib
from types import ModuleType

from tutelage.core.errors import UserError

EXTRA_OF = {  # package -> extra of pyproject.toml that brings it
    "datasets": "hub",
    "tensorboard": "tensorboard",
    "torch.utils.tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "psycopg": "postgresql",
}


def require(package: str) -> ModuleType:
    """Import an optional package.  UserError names the extra when it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = EXTRA_OF.get(package, package)
        raise UserError(
            f"this needs the optional package '{package}' ({error}); install it with: pip install 'tutelage[{extra}]'"
        ) from error
