import pytest

from flows.graph import read_graph, read_stale
from stages.core.files.errors import UserError
from tests.conftest import Clone


def test_every_stage_comes_after_what_it_needs(clone: Clone) -> None:
    graph = read_graph(clone.folder)
    assert set(graph) == set(clone.read_yaml("dvc.yaml")["stages"])
    assert graph["train"] == {"normalize"}
    assert graph["parity"] == {"normalize", "train", "evaluate", "export"}
    order = list(graph)
    assert all(order.index(needed) < order.index(stage) for stage in graph for needed in graph[stage])


def test_a_new_stage_needs_no_other_change(project: Clone) -> None:
    path = project.folder / "dvc.yaml"
    path.write_text(path.read_text() + "  e: {cmd: echo > e.txt, deps: [d.txt], outs: [e.txt]}\n")
    assert read_graph(project.folder)["e"] == {"d"}


def test_targets_include_what_they_need(project: Clone) -> None:
    assert set(read_graph(project.folder, ["b"])) == {"a", "b"}


def test_an_unknown_target_is_reported_with_the_nearest_stage(clone: Clone) -> None:
    with pytest.raises(UserError, match=r"found 'trian'.*did you mean 'train'"):
        read_graph(clone.folder, ["trian"])


def test_stale_is_what_dvc_status_lists(project: Clone) -> None:
    assert read_stale(project.folder) == {"a", "b", "c", "d"}
    project.run("dvc", "repro", "--quiet")
    assert read_stale(project.folder) == set()
    (project.folder / "b.txt").write_text("changed")
    assert read_stale(project.folder) == {"b", "d"}
