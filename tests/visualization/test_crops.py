from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from core.structures import Detections
from core.visualization.crops import crop_paths, write_crops


def _found(labels: list[int]) -> Detections:
    return Detections(torch.zeros(len(labels), 4), torch.ones(len(labels)), torch.tensor(labels))


def test_crops_are_numbered_by_image_in_a_folder_for_each_class() -> None:
    images = [Path("a/x.jpg"), Path("b/x.png"), Path("broken.jpg"), Path("empty.jpg")]
    paths = crop_paths(Path("crops"), images, [_found([1, 0, 1]), _found([0]), None, _found([])], ["cat", "dog"])
    assert [[path.as_posix() for path in of_image] for of_image in paths] == [
        ["crops/dog/x-1.jpg", "crops/cat/x-2.jpg", "crops/dog/x-3.jpg"],
        ["crops/cat/x-2-1.jpg"],
        [],
        [],
    ]


def test_f31_classes_of_any_name_get_folders_of_their_own_inside() -> None:
    names = ["../up", "a/b", "a_b", "A_B", "..", "", "con", "x" * 300, "x" * 301]
    (paths,) = crop_paths(Path("crops"), [Path("i.png")], [_found(list(range(len(names))))], names)
    folders = [path.parent for path in paths]
    assert all(folder.parent == Path("crops") and folder.name not in ("", ".", "..") for folder in folders)
    assert len({folder.name.casefold() for folder in folders}) == len(names)


def test_a_crop_is_the_box_grown_to_whole_pixels(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (10, 5, 20, 25))
    image.save(tmp_path / "i.png")
    boxes = torch.tensor([[10.2, 5.3, 19.6, 24.5], [0.0, 0.0, 0.4, 0.2], [39.5, 29.5, 40.0, 30.0]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 0]))
    paths = [tmp_path / "crops" / f"{number}.jpg" for number in range(3)]
    write_crops(tmp_path / "i.png", found, paths)
    with Image.open(paths[0]) as crop:
        assert crop.size == (10, 20)
        assert crop.getpixel((5, 10)) == (255, 255, 255)
    for path in paths[1:]:
        with Image.open(path) as crop:
            assert crop.size == (1, 1)
