"""What `import rpe_d2` loads, and how long it takes."""

import subprocess
import sys

from tests.conftest import ROOT


def test_the_package_is_imported_without_what_only_tools_need():
    code = "import sys, rpe_d2; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert "rpe_d2.config" in loaded
    assert not {"rpe_d2.engine", "rpe_d2.cli", "rpe_d2.visualization"} & set(loaded)
