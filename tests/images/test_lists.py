"""Text files of paths, and text files that are something else."""

import os

import pytest

from densecl.errors import UserError
from densecl.images.decode import BadImage
from densecl.images.lists import write_list
from densecl.images.sources import open_source
from tests.images.folders import names, touch


def test_a_text_file_of_paths(root, tmp_path):
    touch(root, "b.jpg", "a.jpg")
    elsewhere = tmp_path / "other.png"
    text = f"\ufeff# mine\nphotos/b.jpg\r\n\n  photos/a.jpg  \n{elsewhere}\nphotos/missing.jpg"
    (tmp_path / "list.txt").write_bytes(text.encode())
    source = open_source(tmp_path / "list.txt")
    assert names(source) == [str(root / "b.jpg"), str(root / "a.jpg"), str(elsewhere), str(root / "missing.jpg")]
    with pytest.raises(BadImage, match="No such file"):
        source.read(3)


def test_a_file_that_is_no_list(tmp_path):
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(UserError, match="lists no images"):
        open_source(tmp_path / "empty.txt")
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04\0\0\0")
    with pytest.raises(UserError, match="is a zip archive: neither a folder, nor an image, .* Unpack it"):
        open_source(tmp_path / "photos.zip")


COCO = '{"info": {}, "images": [' + '{"id": 1, "file_name": "photos/a.jpg"}, ' * 50_000 + '], "annotations": []}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coco.json", COCO, "is a JSON file of annotations, such as COCO's, not a list of images. Give the folder"),
        ("coco.json", COCO.replace(",", ",\n"), "is a JSON file of annotations"),
        ("coco.txt", COCO, "is a JSON file of annotations"),
        ("list.json", '["photos/a.jpg", "photos/b.jpg"]', "is a JSON file"),
        ("metadata.jsonl", '{"file_name": "photos/a.jpg"}\n', "is a JSON file of annotations"),
        ("data.yaml", "path: .\ntrain: photos\nnames: [cat, dog]\n", "is a YAML file, such as YOLO's"),
        ("recipe.yaml", "backbone: resnet50\n", "is a recipe. Settings go with config"),
        ("a.csv", "path,label\nphotos/a.jpg,3\n", "line 2, 'photos/a.jpg,3', holds more than the path 'photos/a.jpg'"),
        ("b.csv", "id;class\n17;3\n", "is not a list of images. data takes"),
        ("a.tsv", "photos/a.jpg\t3\n", "holds more than the path"),
        ("labels.txt", "photos/a.jpg 3\nphotos/b.jpg 1\n", "line 1, 'photos/a.jpg 3', holds more than the path"),
        ("pairs.txt", "photos/a.jpg photos/b.jpg\n", "holds more than the path"),
        ("voc.xml", "<annotation></annotation>", "is an XML or HTML file"),
        ("notes.md", "Some photos.\n", "no line names a file. The first, 'Some photos.', would be '"),
        ("lost.txt", "gone/a.jpg\n" * 1000, "none of its first 100 lines names a file"),
        ("folders.txt", "photos\n", "lists folders. It needs the path of an image on each line"),
        ("wide.txt", "x" * 10**6, "is not a list of images"),
        ("wide.txt", "photos/a.jpg\n" + "x" * 10**6, "is not a list of images|holds more"),
        ("utf16.txt", "photos/a.jpg\n".encode("utf-16"), "is a text in UTF-16 or UTF-32. Save it as UTF-8"),
        ("utf16le.txt", "photos/a.jpg\n".encode("utf-16-le"), "is a text in UTF-16 or UTF-32. Save it as UTF-8"),
        ("mac.txt", b"photos/a.jpg\rphotos/b.jpg\r", "has the line ends of old Macs"),
        ("lfs.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:x\n", "Git LFS pointer.*git lfs pull"),
        ("empty.txt", "", "is empty"),
        ("photos.tar", b"\0" * 257 + b"ustar", "is a tar archive.*Unpack it"),
        ("film.mp4", b"\0\0\0\x20ftypisom\0", "is a video.*ffmpeg"),
        ("a.heic", b"\0\0\0\x18ftypheic\0", "is a HEIC image, a format that is not read. Convert it"),
        ("w.pth", b"PK\x03\x04\0", "is a file of weights.*Weights go with init"),
        ("x.npz", b"PK\x03\x04\0", "is a file of NumPy arrays.*in Python"),
        ("x.parquet", b"PAR1\0", "is a Parquet table.*in Python"),
        ("x.dat", b"\1\2\0\3", "a file of another kind"),
    ],
)
def test_what_a_file_is_that_lists_no_images(root, tmp_path, name, content, message):
    touch(root, "a.jpg", "b.jpg")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        open_source(tmp_path / name)
    assert len(str(error.value)) < 700 and str(error.value).isprintable()


@pytest.mark.parametrize(
    "line",
    [
        "photos/caf\u00e9.jpg",  # the file's name is decomposed
        "photos/cafe\u0301.jpg",
        '"photos/a b.jpg"',
        "'photos/a b.jpg'",
        "  photos/a b.jpg\t ",
        " photos/lead.jpg",  # begins with a blank
        "photos\\a b.jpg",
        '"photos\\a b.jpg"',
        "photos/it's.jpg",
        "./#1.jpg",
        "FOLDER/photos/a b.jpg",
        "file://FOLDER/photos/a%20b.jpg",
        "photos/../photos/a b.jpg",
    ],
)
def test_a_line_of_a_list_is_found_as_it_was_meant(root, tmp_path, line):
    touch(root, "cafe\u0301.jpg", "a b.jpg", "it's.jpg", "last.jpg")
    touch(tmp_path, "#1.jpg", " photos/lead.jpg")
    line = line.replace("FOLDER", str(tmp_path))
    (tmp_path / "list.txt").write_bytes(f"{line}\r\nphotos/last.jpg\r\n".encode())
    source = open_source(tmp_path / "list.txt")
    assert len(source) == 2
    assert os.path.isfile(source.name(0))
    assert source.notes() == ()


def test_a_list_moved_with_its_images_has_the_same_fingerprint(tmp_path):
    for place in ("here", "there"):
        touch(tmp_path, f"{place}/cafe\u0301.jpg", f"{place}/a b.jpg")
        (tmp_path / place / "list.txt").write_text('caf\u00e9.jpg\n"a b.jpg"\n')
    here, there = (open_source(tmp_path / place / "list.txt").fingerprint() for place in ("here", "there"))
    assert here == there


def test_a_header_of_one_column_is_no_image(root, tmp_path):
    touch(root, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("path\nphotos/a.jpg\nphotos/b.jpg\n")
    source = open_source(tmp_path / "list.csv")
    assert names(source) == [str(root / "a.jpg"), str(root / "b.jpg")]
    assert source.notes() == ("left out: the first line of the list, 'path'",)


def test_a_list_that_was_written_is_read_as_it_was_meant(tmp_path):
    folder = os.path.join(tmp_path, "  odd 'folder' ")
    said = ["a.jpg", "#b.jpg", "c\udcff.jpg", " d.jpg", "'e'.jpg", "back\\slash.jpg", "é.jpg", "Z = 1.jpg"]
    unsayable = ["line\nbreak.jpg", "blank.jpg "]  # the second is read without its blank, which is another image
    os.mkdir(folder)
    for name in (*said, *unsayable, "blank.jpg", "out\n/etc.jpg"):
        with open(os.path.join(folder, name.replace("/", "_")), "w"):
            pass
    rows = [(os.path.join(folder, name), None) for name in (*said, *unsayable)]
    missing = write_list(tmp_path / "list.txt", "a heading", [*rows, (f"{folder}/out\n/etc.jpg", "why\nnot")])
    assert missing == 2
    assert names(open_source(tmp_path / "list.txt")) == [os.path.join(folder, name) for name in said]
    assert (tmp_path / "list.txt").read_bytes().splitlines()[-1].startswith(b"#   why\\nnot: ")
