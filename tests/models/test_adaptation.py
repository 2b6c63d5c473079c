"""Fine-tuning: a detector takes of another's weights what means the same in both, and says what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from core.annotations.records import Category
from core.errors import CheckpointError
from core.models.detector import Detector
from core.models.specs import SPECS, DecoderFamily
from core.models.weights import LoadedWeights, load_into, read_weights
from tests.golden_files import Golden
from tests.models.test_detector import small_detector
from tests.models.test_weights import CLASSES, saved, synthetic_checkpoint

OLD_NAMES = [category.name for category in CLASSES]


def another(name: str, class_names: Sequence[str], **changes) -> tuple[Detector, dict[str, Tensor]]:
    """Return a detector with weights of its own in every tensor, and a copy of these."""
    detector = small_detector(name, num_classes=len(class_names), **changes)
    generator = torch.Generator().manual_seed(5)
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return detector, {key: tensor.clone() for key, tensor in detector.state_dict().items()}


def expected_rows(name: str, given: Tensor, fresh: Tensor, class_names: Sequence[str]) -> Tensor:
    rows = [given[OLD_NAMES.index(each)] if each in OLD_NAMES else fresh[row] for row, each in enumerate(class_names)]
    return torch.stack(rows + ([given[-1]] if SPECS[name].family is DecoderFamily.DETR else []))


@pytest.mark.parametrize("num_queries", [4, 7, 10], ids=["F50-fewer", "F50-as-many", "F50-more"])
@pytest.mark.parametrize(
    "class_names",
    [["dog", "horse", "bird", "cow"], ["cow"], ["cat"], ["dog", "cat", "bird"], OLD_NAMES],
    ids=["F50-some-known", "F50-none-known", "F50-one-of-three", "F50-other-order", "F50-equal"],
)
@pytest.mark.parametrize("name", ["detr", "dela-detr", "dela-conddetr"])
def test_every_number_is_the_files_or_the_detectors_own(tmp_path, name, class_names, num_queries):
    weights = read_weights(saved(small_detector(name), tmp_path / "model.pt"))
    detector, fresh = another(name, class_names, num_queries=num_queries)
    report = load_into(detector, weights, class_names)
    loaded = detector.state_dict()
    for key, given in weights.state.items():
        if key.startswith("decoder.class_embed."):
            assert torch.equal(loaded[key], expected_rows(name, given, fresh[key], class_names)), key
        elif key == "query_embed.weight":
            assert torch.equal(loaded[key][:7], given[:num_queries])
            assert torch.equal(loaded[key][7:], fresh[key][7:])
        else:
            assert torch.equal(loaded[key], given), key
    assert report.fits
    assert list(report.kept_classes) == [each for each in class_names if each in OLD_NAMES]
    assert list(report.fresh_classes) == [each for each in class_names if each not in OLD_NAMES]


@pytest.mark.parametrize("name", SPECS)
def test_the_report_counts_every_tensor_once(tmp_path, name):
    weights = read_weights(saved(small_detector(name), tmp_path / "model.pt"))
    detector, _ = another(name, ["dog", "horse"], num_queries=10)
    parts = {part.name: part for part in load_into(detector, weights, ["dog", "horse"]).parts}
    assert sum(part.num_loaded + part.num_adapted for part in parts.values()) == len(detector.state_dict())
    assert list(parts)[:4] == ["backbone", "input_proj", "encoder", "query_embed"]
    assert {"decoder.layers", "decoder.norm", "decoder.class_embed", "decoder.bbox_embed"} < set(parts)

    queries, head = parts["query_embed"], parts["decoder.class_embed"]
    assert (queries.num_loaded, queries.num_adapted) == (0, 1)
    assert (queries.taken, queries.fresh) == ("7 of 10 queries", "3 queries")
    assert (head.num_loaded, head.num_adapted) == (0, 2 * len(detector.decoder.class_embed))
    no_object = ', "no object"' if SPECS[name].family is DecoderFamily.DETR else ""
    assert (head.taken, head.fresh) == (f"1 of 2 classes{no_object}", "horse")
    others = [part for part in parts.values() if part not in (queries, head)]
    assert all((part.num_adapted, part.taken, part.fresh) == (0, None, None) for part in others)


def test_queries_that_are_cut_are_reported(tmp_path):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    detector, _ = another("de-detr", OLD_NAMES, num_queries=4)
    adapted = [part for part in load_into(detector, weights, OLD_NAMES).parts if part.num_adapted]
    assert [(part.name, part.taken, part.fresh) for part in adapted] == [("query_embed", "first 4 of 7 queries", None)]


def test_many_new_classes_are_not_all_named_in_the_table(tmp_path):
    names = [f"kind {number}" for number in range(80)]
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    report = load_into(another("de-detr", names)[0], weights, names)
    fresh = next(part.fresh for part in report.parts if part.name == "decoder.class_embed")
    assert fresh == "kind 0, kind 1, kind 2, kind 3, kind 4, kind 5, and 74 more"
    assert list(report.fresh_classes) == names


@pytest.mark.parametrize("name", ["detr", "dela-detr", "dela-conddetr"])
def test_a_reference_checkpoint_goes_to_other_classes_and_queries(tmp_path, name):
    golden = Golden(name)
    torch.save(synthetic_checkpoint(golden), tmp_path / "reference.pth")
    weights = read_weights(tmp_path / "reference.pth")
    # A head of nine rows is that of Cityscapes, where 2 is a car and 7 a bicycle.
    class_names = ["bicycle", "boat", "car"]
    num_given = golden.model_config.num_queries
    dims = golden.model_config.model_dump(exclude={"name", "num_queries"})
    detector, fresh = another(golden.model_config.name, class_names, num_queries=num_given + 3, **dims)
    report = load_into(detector, weights, class_names)
    assert (report.kept_classes, report.fresh_classes) == (("bicycle", "car"), ("boat",))
    loaded = detector.state_dict()
    per_layer = detector.decoder.refines_boxes
    for index in range(len(detector.decoder.class_embed)):
        given = weights.state[f"class_embed.{index}.weight" if per_layer else "class_embed.weight"]
        key = f"decoder.class_embed.{index}.weight"
        assert torch.equal(loaded[key][0], given[7])
        assert torch.equal(loaded[key][1], fresh[key][1])
        assert torch.equal(loaded[key][2], given[2])
        assert len(loaded[key]) == 3 or torch.equal(loaded[key][3], given[9])
    assert torch.equal(loaded["query_embed.weight"][:num_given], weights.state["query_embed.weight"])
    assert torch.equal(loaded["query_embed.weight"][num_given:], fresh["query_embed.weight"][num_given:])


def test_tensors_alone_bring_no_class_rows(tmp_path):
    save_file(small_detector("dela-conddetr").state_dict(), tmp_path / "w.safetensors")
    detector, fresh = another("dela-conddetr", OLD_NAMES)
    report = load_into(detector, read_weights(tmp_path / "w.safetensors"), OLD_NAMES)
    assert report.fresh_classes == tuple(OLD_NAMES)
    for index, head in enumerate(detector.decoder.class_embed):
        assert torch.equal(head.weight, fresh[f"decoder.class_embed.{index}.weight"])


def test_only_rows_are_adapted(tmp_path):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    for key, tensor in (
        ("encoder.layers.0.norm1.weight", torch.zeros(31)),
        ("query_embed.weight", torch.zeros(7, 31)),
        ("decoder.class_embed.0.bias", torch.zeros(())),
    ):
        broken = LoadedWeights(weights.path, {**weights.state, key: tensor}, CLASSES, {}, False, {})
        detector, before = another("de-detr", ["dog"], num_queries=4)
        with pytest.raises(CheckpointError, match=f"1 of another shape: {key}"):
            load_into(detector, broken, ["dog"])
        assert all(torch.equal(before[each], loaded) for each, loaded in detector.state_dict().items())


def test_a_head_that_is_not_of_its_classes_is_refused(tmp_path):
    five = tuple(Category(number, f"kind {number}") for number in range(5))
    path = saved(small_detector("de-detr"), tmp_path / "model.pt", five)
    with pytest.raises(CheckpointError, match=r"5 classes, but the shape of 'decoder\.class_embed\.0\.weight'"):
        read_weights(path)


def test_without_names_nothing_is_adapted(tmp_path: Path):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    for changes in ({"num_queries": 4}, {"num_queries": 10}, {"num_classes": 4}):
        with pytest.raises(CheckpointError, match="of another shape"):
            load_into(small_detector("de-detr", **changes), weights)
    report = load_into(small_detector("de-detr"), weights)
    assert sum(part.num_adapted for part in report.parts) == 0
    assert report.kept_classes == report.fresh_classes == ()
