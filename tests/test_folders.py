from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hyperdreambooth.errors import BadPicture, UserError
from hyperdreambooth.faces import read_encoded, read_picture
from hyperdreambooth.folders import (
    LEARNT_FROM,
    SPLITS,
    Encoded,
    Sources,
    _in_dataset,
    check_apart,
    pictures_of_people,
    read_names,
    write_splits,
)
from hyperdreambooth.people import find_people, names_of, read_people
from hyperdreambooth.photographs import Keeping


def files(folder: Path, *names: str) -> Path:
    """A folder that holds empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def grey(path: Path, level: int, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (level, level, level)).save(path)
    return path


def names(sources: Sources) -> dict[str, list[str]]:
    return {person: [Path(str(picture)).name for picture in pictures] for person, pictures in sources.items()}


def test_plain_folders_and_pictures_side_by_side(tmp_path: Path) -> None:
    files(tmp_path, "bea/2.png", "bea/1.JPG", "bea/notes.txt", "ann.jpeg", "list.csv")
    assert names(pictures_of_people(tmp_path)) == {"ann": ["ann.jpeg"], "bea": ["1.JPG", "2.png"]}


def test_what_shows_nobody_is_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files(tmp_path, "bea/2.png", "bea/._2.png", ".git/logo.png", "__MACOSX/ann.png", "._carl.jpg", "dora/1.HEIC")
    (tmp_path / "empty").mkdir()
    assert names(pictures_of_people(tmp_path)) == {"bea": ["2.png"]}
    assert any("2 folders of" in line and "hold no" in line for line in caplog.messages)


@pytest.mark.parametrize("inside", ["", "images1024x1024", "thumbnails128x128"])
def test_ffhq_holds_one_person_per_picture(tmp_path: Path, inside: str) -> None:
    files(tmp_path / inside, "00000/00000.png", "00000/00999.png", "69000/69001.png")
    files(tmp_path, "ffhq-dataset-v2.json", "LICENSE.txt")
    assert list(pictures_of_people(tmp_path)) == ["00000", "00999", "69001"]
    files(tmp_path / inside, "69000/00001.png")  # no picture of that thousand: two pictures of one person, then
    assert list(pictures_of_people(tmp_path)) == ["00000", "00999", "69000"]


def test_sfhq_holds_one_person_per_picture(tmp_path: Path) -> None:
    files(tmp_path, "images/images/SFHQ_pt1_00000001.jpg", "images/images/SFHQ_pt1_00000002.jpg", "attributes.csv")
    assert list(pictures_of_people(tmp_path)) == ["SFHQ_pt1_00000001", "SFHQ_pt1_00000002"]


def test_a_person_may_be_called_images(tmp_path: Path) -> None:
    files(tmp_path, "images/1.png", "bob/1.png")
    assert list(pictures_of_people(tmp_path)) == ["bob", "images"]


def test_celeba_by_its_identities(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files(tmp_path, *(f"img_align_celeba/{number:06d}.jpg" for number in range(1, 5)))
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 17\n000003.jpg 2880\n")
    assert names(pictures_of_people(tmp_path)) == {"17": ["000002.jpg"], "2880": ["000001.jpg", "000003.jpg"]}
    assert ["1 pictures are not in" in line for line in caplog.messages] == [True]


def test_celeba_hq_by_the_identities_of_celeba(tmp_path: Path) -> None:
    """Its pictures have numbers of their own, and masks lie beside them."""
    files(tmp_path, *(f"CelebA-HQ-img/{number}.jpg" for number in range(3)), "CelebAMask-HQ-mask-anno/0/00000_hair.png")
    mapping = tmp_path / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("idx\torig_idx\torig_file\n0\t2\t000003.jpg\n1\t0\t000001.jpg\n2\t1\t000002.jpg\n")
    with pytest.raises(UserError, match=r"without identity_CelebA\.txt"):
        pictures_of_people(tmp_path)
    identities = tmp_path / "identity_CelebA.txt"
    identities.write_text("000001.jpg 9\n000002.jpg 8\n000003.jpg 9\n")
    assert names(pictures_of_people(tmp_path)) == {"8": ["2.jpg"], "9": ["0.jpg", "1.jpg"]}
    identities.write_text("000001.jpg 9\n000002.jpg\n")
    with pytest.raises(UserError, match=r'line 2 is "000002\.jpg", expected PICTURE PERSON'):
        pictures_of_people(tmp_path)


def test_celeba_hq_resized_under_numbers_with_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pictures that the mapping or the identities do not know are counted, CelebA's own among them; masks are not."""
    files(tmp_path, *(f"resized/{number:05d}.jpg" for number in (0, 10, 11, 12)), "masks/00010_hair.png")
    files(tmp_path, "img_align_celeba/000010.jpg")
    mapping = tmp_path / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("idx\torig_idx\torig_file\n0\t2\t000003.jpg\n10\t0\t000001.jpg\n11\t4\t000005.jpg\n")
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 9\n000003.jpg 8\n000010.jpg 7\n")
    assert names(pictures_of_people(tmp_path)) == {"8": ["00000.jpg"], "9": ["00010.jpg"]}
    assert [line.startswith(f"3 pictures are not in {mapping}") for line in caplog.messages] == [True]


def dataset(splits: dict[str, list[tuple[int, str]]], person: str | None, classes: bool) -> datasets.DatasetDict:
    """Grey pictures of some levels, and whose they are."""
    made = {}
    everybody = sorted({who for rows in splits.values() for _, who in rows})
    for split, rows in splits.items():
        columns = {"image": [Image.new("RGB", (32, 32), (level,) * 3) for level, _ in rows]}
        features = {"image": datasets.Image()}
        if person is not None:
            columns[person] = [who for _, who in rows]
            features[person] = datasets.ClassLabel(names=everybody) if classes else datasets.Value("string")
        made[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return datasets.DatasetDict(made)


@pytest.mark.parametrize("classes", [True, False])
def test_a_dataset_by_its_column_of_people(tmp_path: Path, classes: bool) -> None:
    rows = {"train": [(10, "ann"), (20, "bea"), (30, "ann")], "test": [(40, "bea"), (50, "carl")]}
    dataset(rows, "identity", classes).save_to_disk(tmp_path / "saved")
    where = f"dataset:{tmp_path / 'saved'}"
    assert names_of(where) == ["ann", "bea", "carl"]
    people = read_people(where, 16, 2, lambda _: None)
    levels = (people.pictures[:, :, 0, 8, 8] * 255).round().int()  # whoever has one picture shows it twice
    assert people.names == ("ann", "bea", "carl") and levels.tolist() == [[10, 30], [20, 40], [50, 50]]


def test_a_dataset_of_parquet_without_people_and_with_a_damaged_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    some = dataset({"train": [(10, ""), (20, "")]}, None, False)["train"].cast_column("image", datasets.Image(False))
    rows = [some[0]["image"], {"bytes": b"no picture", "path": None}, some[1]["image"]]
    broken = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
    broken.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    people = read_people(f"dataset:{tmp_path / 'data'}", 16, 1, lambda _: None)
    assert people.names == ("train-0000000", "train-0000002")
    assert "1 of 3 pictures were left out" in caplog.messages
    assert any("train 1, not a picture" in line for line in caplog.messages)


def test_rows_without_a_picture_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    some = dataset({"train": [(10, "")]}, None, False)["train"].cast_column("image", datasets.Image(False))
    rows = datasets.Dataset.from_dict({"image": [some[0]["image"], None]}).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "saved")
    where = f"dataset:{tmp_path / 'saved'}"
    kept = Keeping(tmp_path / "kept")
    for read in (read_people, partial(find_people, keeping=kept)):
        caplog.clear()
        assert read(where, 16, 1, progress=lambda _: None).names == ("0000000",)
        assert "1 of 2 pictures were left out" in caplog.messages
        assert any("row 1 has no picture" in line for line in caplog.messages)
    gone = [{"image": {"bytes": None, "path": str(tmp_path / "gone.png")}}]
    with pytest.raises(BadPicture, match="row 0 has no picture"):
        _in_dataset(gone, "image", 0, "row 0").fetch()


def test_no_dataset_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot open the data set"):
        names_of(f"dataset:{tmp_path / 'nothing'}")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match="has the columns text, expected one of images"):
        names_of(f"dataset:{tmp_path / 'text'}")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'hyperdreambooth\[data\]'"):
        names_of("dataset:org/name")


def test_everybody_is_in_one_list(tmp_path: Path) -> None:
    everybody = [f"person-{number}" for number in range(20)]
    counts = write_splits(everybody, 3, 5, tmp_path, np.random.RandomState(0))
    assert counts == {"training": 12, "tuning": 3, "reporting": 5}
    lists = {split: read_names(tmp_path / f"{split}.txt") for split in SPLITS}
    assert sorted(name for some in lists.values() for name in some) == sorted(everybody)
    write_splits(everybody, 3, 5, tmp_path / "again", np.random.RandomState(0))
    assert all(read_names(tmp_path / "again" / f"{split}.txt") == lists[split] for split in SPLITS)
    (tmp_path / "tuning.txt").write_text(f"{lists['training'][0]}\n")
    with pytest.raises(UserError, match=r"training\.txt share 1 people, such as person-"):
        read_names(tmp_path / "tuning.txt")
    (tmp_path / "of-mine.txt").write_text(f"{lists['training'][0]}\n")
    assert read_names(tmp_path / "of-mine.txt") == lists["training"][:1]
    with pytest.raises(UserError, match="hold out fewer"):
        write_splits(everybody, 10, 10, tmp_path, np.random.RandomState(0))


def test_whom_a_training_knows_is_not_measured_on(tmp_path: Path) -> None:
    result = tmp_path / "hypernetwork.safetensors"
    result.touch()
    for network in (tmp_path, result):
        check_apart(["ann", "bea"], network)  # a folder of no training
    (tmp_path / LEARNT_FROM).write_text("carl\nbea\n")
    for network in (tmp_path, result):
        check_apart(["ann"], network)
        with pytest.raises(UserError, match=r"learnt from 1 of the people to be measured on, such as bea"):
            check_apart(["ann", "bea"], network)


def test_those_who_are_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate(("ann/1.png", "ann/2.png", "bea.png", "carl.png")):
        grey(tmp_path / name, 10 * number)
    assert read_people(str(tmp_path), 16, 1, lambda _: None, {"ann", "carl"}).names == ("ann", "carl")
    chosen = read_people(str(tmp_path), 16, 1, lambda _: None, {"2.png", "bea.png"})
    assert chosen.names == ("ann", "bea") and chosen.pictures.shape[1] == 1
    levels = [read_people(str(tmp_path), 16, 1, lambda _: None, {"ann", "bea.png"}, most).pictures for most in (1, 2)]
    assert [[round(float(own.mean()) * 255) for own in some] for some in levels] == [[0], [0, 20]]  # the first one each
    assert read_people("portraits:3-6", 16, 1, lambda _: None, {"portrait-5"}).names == ("portrait-5",)
    with pytest.raises(UserError, match="has no dora"):
        read_people(str(tmp_path), 16, 1, lambda _: None, {"ann", "dora"})


def test_bytes_are_read_as_files_are(tmp_path: Path) -> None:
    path = grey(tmp_path / "a.png", 77)
    source = Encoded("row 0", path.read_bytes)
    assert torch.equal(read_encoded(source.fetch(), source.name), read_picture(path))
