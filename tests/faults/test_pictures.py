"""Kill the stages while they read pictures, fill their disk, and put anything in the place of a picture or a table."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import download, normalize
from stages.core.data.splits import read_dataset
from stages.core.files import layout
from stages.core.files.atomic import remove
from stages.core.files.errors import UserError
from tests.conftest import write_params
from tests.core.examples.pictures import encode
from tests.faults.counts import LONG, DataLostError, Faults
from tests.faults.processes import Running, contents, run
from tests.faults.test_bad_input import fuzzed_slowly
from tests.faults.test_disk import check_told, disk, fill
from tests.test_own_images import photo, write_flowers

pytestmark = pytest.mark.slow

KILLS = 50 if LONG else 4  # of each stage
AMOUNTS = 20 if LONG else 2  # of space that is left
SEED = 5
OUTPUTS = {
    "download": [Path("artifacts/raw/flowers")],
    "normalize": [layout.NORMALIZED, layout.DATA_METRICS, layout.DATA_DETAILS],
}


def make_workspace(folder: Path, params: dict[str, Any], rounds: int) -> Path:
    """Write params and the data set `flowers` to `folder`, and run both stages."""
    params["dataset"] = "flowers"
    params["normalize"]["problems"] = 0.5
    del params["datasets"]
    folder.mkdir(exist_ok=True)
    write_params(params, folder)
    write_flowers(folder / "data/flowers", rounds)
    (folder / "data/flowers/rose/broken.png").write_bytes(encode(photo(1, 1))[:99])
    for stage in OUTPUTS:
        assert run(folder, stage).status == 0
    return folder


@pytest.mark.parametrize("stage", OUTPUTS)
def test_kill(faults: Faults, tmp_path: Path, params: dict[str, Any], stage: str) -> None:
    """Kill a stage at any moment: its outputs are whole or missing, and the next run makes the same ones."""
    folder, draw = make_workspace(tmp_path, params, rounds=12), random.Random(f"{SEED} {stage}")
    undisturbed = contents(folder, *OUTPUTS[stage])
    remove(folder / OUTPUTS[stage][0])
    began = time.monotonic()
    assert run(folder, stage).status == 0
    took, killed = time.monotonic() - began, 0
    assert contents(folder, *OUTPUTS[stage]) == undisturbed
    while killed < KILLS:
        remove(folder / OUTPUTS[stage][0])
        running = Running(folder, stage)
        running.process.join(draw.uniform(0, took))
        ended = not running.process.is_alive()
        running.kill()
        if ended:
            continue
        killed += 1
        with faults.tried(f"kill -9 of stage {stage} while it reads pictures"):
            found = contents(folder, *OUTPUTS[stage])
            if not found.items() <= undisturbed.items():
                raise DataLostError(f"stage '{stage}' has left half a file")
            again = run(folder, stage)
            assert again.status == 0, again.output
            assert contents(folder, *OUTPUTS[stage]) == undisturbed
            assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("stage", OUTPUTS)
def test_full_disk(faults: Faults, tmp_path: Path, params: dict[str, Any], stage: str) -> None:
    name = f"full disk under stage {stage} while it reads pictures"
    with disk(faults, name, tmp_path / "disk") as mount:
        folder, draw = make_workspace(mount / "made", params, rounds=12), random.Random(f"{SEED} {stage}")
        undisturbed = contents(folder, *OUTPUTS[stage])
        size = sum((folder / file).stat().st_size for file in undisturbed)
        full = 0
        while full < AMOUNTS:
            remove(folder / OUTPUTS[stage][0])
            filler = fill(mount, draw.randrange(size) if full else 0)
            ended = run(folder, stage)
            filler.unlink()
            if full and ended.status == 0:  # There was enough room.
                continue
            full += 1
            with faults.tried(name):
                check_told(ended, stage, "No space left on device")
                if not contents(folder, *OUTPUTS[stage]).items() <= undisturbed.items():
                    raise DataLostError(f"stage '{stage}' has left half a file")
                assert run(folder, stage).status == 0
                assert contents(folder, *OUTPUTS[stage]) == undisturbed


@fuzzed_slowly
@given(data=st.data())
def test_anything_in_the_place_of_a_picture(
    faults: Faults, tmp_path_factory: pytest.TempPathFactory, params: dict[str, Any], data: st.DataObject
) -> None:
    """Check that the other pictures are not affected, and that the file is named if it cannot be used."""
    folder, content = tmp_path_factory.mktemp("any"), encode(photo(7, 0))
    start, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, len(content)))
    inserted = data.draw(st.one_of(st.binary(max_size=300), st.just(content)))
    with faults.tried("any bytes in the place of a picture"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params["dataset"], params["normalize"]["problems"] = "flowers", 0.5
        params.pop("datasets", None)
        write_params(params, folder)
        write_flowers(Path("data/flowers"), rounds=1)
        changed = Path("data/flowers/rose/changed.png")
        changed.write_bytes(content[:start] + inserted + content[start + length :])
        download.main()
        normalize.main()
        examples = read_dataset().examples
        bad = examples.drop_nulls("problem")["file"].to_list()
        assert bad in ([], ["rose/changed.png"])
        assert len(examples) - len(bad) >= 48


@fuzzed_slowly
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(str.encode),
        st.lists(st.sampled_from(["file", "label", ",", ";", "\n", "\r\n", '"', "a.png", "rose", "\ufeff", "\t"])).map(
            lambda parts: "".join(parts).encode()
        ),
    )
)
def test_anything_in_the_place_of_the_table(
    faults: Faults, tmp_path_factory: pytest.TempPathFactory, params: dict[str, Any], content: bytes
) -> None:
    """Check that the stage ends with a message that names the table or what it holds."""
    folder = tmp_path_factory.mktemp("any")
    with faults.tried("any bytes in the place of labels.csv"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params["dataset"] = "flowers"
        params.pop("datasets", None)
        write_params(params, folder)
        Path("data/flowers").mkdir(parents=True)
        Path("data/flowers/a.png").write_bytes(encode(photo(1, 1)))
        Path("data/flowers/labels.csv").write_bytes(content)

        def read() -> None:
            download.main()
            normalize.main()

        with pytest.raises(UserError, match="data/flowers"):  # Even a sound table has too few pictures.
            read()
        assert not layout.NORMALIZED.exists()
