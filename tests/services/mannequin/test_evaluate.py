import json
import subprocess
import sys

import pytest

from vtryon_services.mannequin.evaluate import score
from vtryon_services.mannequin.triples import HELD_OUT, draw_triples


def test_the_truth_scores_best_and_the_unchanged_person_badly_on_the_torso() -> None:
    triples = draw_triples(32, HELD_OUT)
    truth, person = score(triples.truth, triples), score(triples.person, triples)
    assert truth.torso_colour_error == 0
    assert truth.psnr_torso > 60
    assert person.torso_colour_error > 30
    assert person.psnr_torso < 15
    assert person.psnr_outside > 40


@pytest.mark.timeout(200)
def test_the_command_measures_the_mesh_and_its_controls() -> None:
    command = (sys.executable, "-m", "vtryon", "mannequin", "evaluate", "--examples", "6", "--json")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["shipped"]
    colour = {name: row["torso_colour_error"] for name, row in found["rows"].items()}
    assert colour["VAE round trip of the truth"] < colour["4 steps"]
    assert colour["4 steps"] < 0.5 * colour["the person unchanged"]
    assert colour["4 steps"] < 0.5 * colour["shuffled garments"]
    assert colour["4 steps"] < colour["the garment's mean colour"]
    assert set(found["obeyed"]) == {"tucked in / worn loose"}
    assert found["patterns"]
