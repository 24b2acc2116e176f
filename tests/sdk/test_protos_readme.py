import re
from pathlib import Path

PROTOS = Path(__file__).parents[2] / "protos"


def test_the_readme_of_the_protos_lists_every_service_and_call() -> None:
    readme = (PROTOS / "README.md").read_text()
    for proto in (PROTOS / "vtryon" / "v1").glob("*.proto"):
        text = proto.read_text()
        for name in re.findall(r"^service (\w+)|^  rpc (\w+)", text, re.MULTILINE):
            assert f"`{name[0] or name[1]}`" in readme
