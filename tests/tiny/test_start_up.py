"""What a start imports, tested in separate processes because modules are imported once in each."""

import subprocess
import sys

from script.schema import ROOT

PROGRAM = """
import sys
import predict, pipelines.sampling.control, pipelines.drawing.phases, pipelines.upscalers.latent
import pipelines.models.loader, pipelines.models.safety
print([name for name in sys.modules if name.startswith("accelerate.") or name == "cv2"])
del sys.modules["accelerate"]
import accelerate
print(accelerate.__version__)
"""


def test_a_start_leaves_accelerate_and_opencv_alone_and_code_that_needs_it_can_have_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    early, version = done.stdout.splitlines()
    assert early == "[]"
    assert f"accelerate=={version}  #" in (ROOT / "requirements.txt").read_text(encoding="utf-8")
