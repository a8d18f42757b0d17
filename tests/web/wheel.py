"""The browser tests against the installed wheel, not the checkout:  python tests/web/wheel.py [what pytest takes]

Builds the wheel from a copy of the sources, looks into it, installs it into an environment of its own that borrows the
dependencies of this one, and runs the tests with the server started from there.  Nothing is downloaded.
"""

import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src", "recipes")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


def build(folder: Path) -> Path:
    """The wheel, made in `folder`; the checkout stays as it is."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        place = REPOSITORY / name
        shutil.copytree(place, copy / name, ignore=LEFT_OUT) if place.is_dir() else shutil.copy(place, copy / name)
    _pip("wheel", str(copy), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    return next(folder.glob("tutelage-*.whl"))


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-index", "--quiet"],
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed; building needs setuptools>=77 here (pip install setuptools):\n{done.stderr[-3000:]}")


def faults(wheel: Path) -> list[str]:
    """What is missing from the wheel, and what should not be in it."""
    package = REPOSITORY / "src" / "tutelage"
    wanted = {f"tutelage/{each.relative_to(package).as_posix()}" for each in package.rglob("*")
              if each.is_file() and "__pycache__" not in each.parts}
    there = set(zipfile.ZipFile(wheel).namelist())
    mine = {name for name in there if not name.split("/")[0].endswith((".dist-info", ".data"))}
    return [f"missing: {name}" for name in sorted(wanted - there)] + [f"too much: {name}" for name in sorted(mine - wanted)]


def install(wheel: Path, folder: Path) -> Path:
    """The command `tutelage` of an environment with the wheel in it."""
    place = folder / "installed"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", str(wheel))
    inner = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip())
    # The folders themselves, behind the environment's own: .pth files in them, such as that of the checkout, are not read.
    (inner / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    found = subprocess.check_output([python, "-c", "import tutelage; print(tutelage.__file__)"], text=True, cwd=folder).strip()
    if not Path(found).is_relative_to(place):
        raise SystemExit(f"the environment runs {found}, not the wheel")
    return place / "bin" / "tutelage"


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="wheel-") as made:
        folder = Path(made)
        wheel = build(folder)
        if wrong := faults(wheel):
            print("\n".join(wrong))
            return 1
        command = install(wheel, folder)
        print(f"the server under test is of {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
        return subprocess.run([sys.executable, "-m", "pytest", "-s", "-m", "web", *(arguments or ["tests/web"])], cwd=REPOSITORY,
                              env={**os.environ, "TUTELAGE_TEST_WEB": "1", "TUTELAGE_WEB_COMMAND": str(command)}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
