"""What a release is made of."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "audit/web/static"


def test_a_release_names_all_that_is_pinned(tmp_path: Path) -> None:
    # Each command of the recipe; make itself would look whether the environment is up to date.
    recipe = re.findall(
        r"^release:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    commands = recipe[0].replace("$(DIST)", str(tmp_path))
    subprocess.run(["sh", "-ec", commands], cwd=ROOT, check=True, capture_output=True)

    pinned = dict(
        re.findall(
            r"^([\w.-]+)==([^ ;\\]+)", (ROOT / "requirements-server.lock").read_text(), re.MULTILINE
        )
    )
    listed = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert pinned == {one["name"]: one["version"] for one in listed["components"]}
    assert listed["metadata"]["component"]["name"] == "task-audit"
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("sql", "migrations"):
        here = {f"audit/_{file.relative_to(ROOT)}" for file in (ROOT / folder).rglob("*.sql")}
        assert here
        assert here <= names
    static = {str(file.relative_to(ROOT)) for file in STATIC.rglob("*") if file.is_file()}
    assert {f"{STATIC.relative_to(ROOT)}/page/main.js"} <= static <= names
    licences = {name for name in names if ".dist-info/licenses/" in name}
    for licence in (Path("LICENSE"), *(file.relative_to(ROOT) for file in STATIC.rglob("LICENSE"))):
        assert any(name.endswith(f"/licenses/{licence}") for name in licences), licence
    assert list(tmp_path.glob("*.tar.gz"))
