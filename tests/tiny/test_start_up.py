"""What a start imports, tested in separate processes because modules are imported once in each."""

import subprocess
import sys

from script.schema import ROOT

PROGRAM = """
import sys
import predict, pipelines.sampling.control, pipelines.drawing.phases, pipelines.upscalers.latent
import pipelines.models.loader, pipelines.models.safety
late = {"accelerate", "av", "cv2", "peft", "pillow_heif"}
print(sorted(name for name, module in sys.modules.items() if module is not None and name.split(".")[0] in late))
del sys.modules["accelerate"], sys.modules["peft"]
import accelerate, peft
print(accelerate.__version__, peft.__version__)
"""


def test_a_start_imports_only_what_each_prediction_needs_and_code_that_needs_more_can_have_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    early, versions = done.stdout.splitlines()
    assert early == "[]"
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for name, version in zip(("accelerate", "peft"), versions.split(), strict=True):
        assert f"{name}=={version}  #" in requirements
