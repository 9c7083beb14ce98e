"""The same samples in every layout, and what is said where a row is wrong."""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from chronostat.data.own import OwnData
from chronostat.data.sources import columnar
from chronostat.errors import DataError

COLOURS = {"train": "red", "validation": "green", "test": "blue"}


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def rows(image):
    """A row for each split; ``image`` makes what stands for the picture of a colour."""
    return [
        {"id": split, "image": image(colour), "prompt": "Which?", "answers": [colour], "split": split, "kind": "colour"}
        for split, colour in COLOURS.items()
    ]


def named(folder):
    for colour in COLOURS.values():
        (folder / f"{colour}.png").write_bytes(png(colour))
    return lambda colour: f"{colour}.png"


def lines(folder):
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(named(folder)))))
    return path


def data_uris(folder):
    path = folder / "data.jsonl"
    uri = "data:image/png;base64,"
    path.write_text("\n".join(map(json.dumps, rows(lambda c: uri + base64.b64encode(png(c)).decode()))))
    return path


def parquet(folder, image=lambda colour: {"bytes": png(colour), "path": None}, **options):
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows(image)), path, **options)
    return path


def parquet_of_small_groups(folder):
    return parquet(folder, row_group_size=1)


def parquet_of_bytes(folder):
    return parquet(folder, png)


def parquet_of_lists(folder):
    return parquet(folder, lambda colour: [{"bytes": png(colour), "path": "x.png"}])


def parquet_of_paths(folder):
    name = named(folder)
    return parquet(folder, lambda colour: {"bytes": None, "path": name(colour)})


def parquet_in_shards(folder):
    for row in rows(lambda colour: {"bytes": png(colour), "path": None}):
        split = row.pop("split")
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{split}-00000-of-00001.parquet")
    return folder


def parquet_in_folders(folder):
    """As the hub converts a data set."""
    for row in rows(lambda colour: {"bytes": png(colour), "path": None}):
        inner = folder / "default" / row.pop("split")
        inner.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row]), inner / "0000.parquet")
    return folder


def table(folder, image, delimiter=","):
    path = folder / ("data.csv" if delimiter == "," else "data.tsv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["index", "image", "question", "answer", "split", "category"])
        for row in rows(image):
            writer.writerow([row["id"], row["image"], row["prompt"], row["answers"][0], row["split"], row["kind"]])
    return path


def csv_of_paths(folder):
    return table(folder, named(folder))


def tsv_of_base64(folder):
    return table(folder, lambda colour: base64.b64encode(png(colour)).decode(), "\t")


def imagefolder(folder):
    told = rows(named(folder))
    texts = [json.dumps({"file_name": row.pop("image"), **row}) for row in told]
    (folder / "metadata.jsonl").write_text("\n".join(texts))
    return folder


def imagefolder_of_splits(folder):
    for row in rows(lambda colour: f"{colour}.png"):
        inner = folder / row.pop("split")
        inner.mkdir()
        (inner / row["image"]).write_bytes(png(row["answers"][0]))
        (inner / "metadata.jsonl").write_text(json.dumps({"file_name": row.pop("image"), **row}))
    return folder


def saved(folder, told):
    """As ``datasets`` saves one: an Arrow stream, and what says its name."""
    folder.mkdir(exist_ok=True)
    data = pa.Table.from_pylist(told)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, data.schema) as out,
    ):
        out.write_table(data)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


def saved_data_set(folder):
    return saved(folder / "saved", rows(lambda colour: {"bytes": png(colour), "path": None}))


def saved_splits(folder):
    for row in rows(lambda colour: {"bytes": png(colour), "path": None}):
        saved(folder / row.pop("split"), [row])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(COLOURS)}))
    return folder


LAYOUTS = [
    *(lines, data_uris, parquet, parquet_of_small_groups, parquet_of_bytes, parquet_of_lists, parquet_of_paths),
    *(parquet_in_shards, parquet_in_folders),
    *(csv_of_paths, tsv_of_base64, imagefolder, imagefolder_of_splits, saved_data_set, saved_splits),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_samples(tmp_path, layout):
    data = OwnData(layout(tmp_path))
    for split, colour in COLOURS.items():
        (sample,) = data.split(split)
        assert (sample.id, sample.prompt, sample.references, sample.kind) == (split, "Which?", (colour,), "colour")
        (image,) = sample.load_images()
        assert (image.mode, image.tobytes()) == ("RGB", Image.new("RGB", (6, 4), colour).tobytes())
        assert str(tmp_path) in sample.where


def test_the_images_of_a_file_are_read_when_they_are_used(tmp_path):
    data = OwnData(lines(tmp_path))
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"cannot read the image .*red\.png"):
        data.split("train")[0].load_images()


def test_the_bytes_of_an_image_are_copied_once_when_a_file_is_read(tmp_path, monkeypatch):
    copied = []

    def counted(fetch, place):
        copied.append(place)
        return bytes_of(fetch, place)

    bytes_of = columnar._bytes_of
    monkeypatch.setattr(columnar, "_bytes_of", counted)
    OwnData(parquet_of_lists(tmp_path))
    assert copied == [0, 0, 0]  # one image in each of three rows


def vlmevalkit(folder, *told):
    path = folder / "bench.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["index", "image", "hint", "question", "A", "B", "C", "answer"], delimiter="\t")
        writer.writeheader()
        writer.writerows(told)
    return path


def test_a_table_of_vlmevalkit_reads_as_it_is(tmp_path):
    """Options in columns of their own, an image as base64, and the index of the row whose image another one shares."""
    one = {"index": "1", "image": base64.b64encode(png("red")).decode(), "question": "Which?", "answer": "B"}
    other = {"index": "2", "image": "1", "hint": "It is warm.", "question": "Which\none?", "answer": "A"}
    path = vlmevalkit(tmp_path, one | {"A": "blue", "B": "red", "C": ""}, other | {"A": "red", "B": "blue", "C": "x"})
    samples = {sample.id: sample for sample in OwnData(path).everything}
    assert samples["1"].prompt == "Which?\nA. blue\nB. red"
    assert samples["1"].options == ("blue", "red")
    assert samples["2"].prompt == "It is warm.\nWhich\none?\nA. red\nB. blue\nC. x"
    assert samples["2"].references == ("A",)
    assert samples["1"].image_digests == samples["2"].image_digests
    assert samples["1"].split == samples["2"].split  # they share an image


def one_row(folder, **changed):
    """The sample of a Parquet file with one row, some of whose columns are others."""
    row = {"id": "1", "image": {"bytes": png("red"), "path": None}, "question": "Which?", "answer": "red"} | changed
    pq.write_table(pa.Table.from_pylist([row]), folder / "a.parquet")
    return OwnData(folder / "a.parquet").everything[0]


def test_a_list_that_python_wrote_is_a_list(tmp_path):
    """VLMEvalKit writes several images, and MMMU its options, as Python writes a list."""
    images = str([base64.b64encode(png(colour)).decode() for colour in ("red", "blue")])
    (sample,) = OwnData(
        vlmevalkit(tmp_path, {"index": "1", "image": images, "question": "W?", "answer": "x"})
    ).everything
    assert [image.getpixel((0, 0)) for image in sample.load_images()] == [(255, 0, 0), (0, 0, 255)]
    assert one_row(tmp_path, options="['one', \"it's\"]").options == ("one", "it's")
    assert one_row(tmp_path, answer="[not a list").references == ("[not a list",)
    assert one_row(tmp_path, answer="{1, 1}").references == ("{1, 1}",)


def test_options_of_a_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 1: options: Input should be a valid list \(it is 'one, two'\)"):
        one_row(tmp_path, options="one, two")


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"options": []}, ()),
        ({"options": ["one", "two", None, ""]}, ("one", "two")),
        ({"options": {"A": "one", "B": "two", "C": None}}, ("one", "two")),
        ({"A": 1, "B": 2.5, "C": None}, ("1", "2.5")),
        ({"A": "a grade"}, ()),
    ],
)
def test_empty_options_are_none(tmp_path, changed, options):
    assert one_row(tmp_path, **changed).options == options


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": ["one", None, "two"]}, r"options\.1: Input should be a valid string \(it is None\)"),
        ({"A": ["x"], "B": ["y"]}, r"options\.0: Input should be a valid string \(it is \['x'\]\)"),
        ({"answer": [{"text": "red"}]}, r"answers\.0: Input should be a valid string"),
        ({"answer": [None]}, r"answers: List should have at least 1 item"),
        ({"id": b"1"}, r"id: the column 'id' holds bytes, and a text or a number is wanted; .* with id = \"\""),
        ({"image": [{"bytes": png("red")}, None]}, "image 2 of 2 is absent; leave it out of the list"),
        ({"image": [{"bytes": None, "path": None}]}, "image 1 of 1 is absent"),
        ({"image": {"bytes": None, "path": "b.png"}}, "image .*b.png does not exist"),
    ],
)
def test_a_bad_cell_of_parquet_is_named_with_its_row(tmp_path, changed, message):
    with pytest.raises(DataError, match=rf"a\.parquet: row 1: {message}"):
        one_row(tmp_path, **changed)


def test_columns_a_and_b_are_no_options_where_those_are_left_out(tmp_path):
    assert one_row(tmp_path, A="x", B="y").options == ("x", "y")
    assert OwnData(tmp_path / "a.parquet", {"options": ""}).everything[0].options == ()


@pytest.mark.parametrize(
    ("answer", "options", "references"),
    [
        (1, ["one", "two"], ("B",)),
        ("1", ["one", "two"], ("B",)),  # as a table writes it
        ("1", ["1", "2"], ("1",)),  # the text of an option
        (1, ["1", "2"], ("B",)),
        (7, ["one", "two"], ("7",)),  # matched by nothing, which is said
        (True, ["False", "True"], ("True",)),
        (True, None, ("True",)),
        (1, None, ("1",)),
        ([None, "cat"], None, ("cat",)),
    ],
)
def test_an_answer_of_another_layout(tmp_path, answer, options, references):
    assert one_row(tmp_path, answer=answer, options=options).references == references


def test_columns_are_named_by_the_configuration(tmp_path):
    told = [{"q": "Which?", "gold": 7, "pic": {"bytes": png("red"), "path": None}, "split": "no split of ours"}]
    pq.write_table(pa.Table.from_pylist(told), tmp_path / "a.parquet")
    columns = {"prompt": "q", "answers": "gold", "image": "pic", "split": ""}
    (sample,) = OwnData(tmp_path / "a.parquet", columns).everything
    assert (sample.id, sample.prompt, sample.references) == ("1", "Which?", ("7",))
    with pytest.raises(DataError, match=r"data\.columns says that prompt is the column 'text', which is not there"):
        OwnData(tmp_path / "a.parquet", columns | {"prompt": "text"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "id,image,question,answer\n1,a.png,Which?\n",
            "a.csv:2: it has another number of fields",
        ),
        ("a.csv", "id,image,question,answer\n1,b.png,Which?,red\n", "a.csv:2: image .*b.png does not exist"),
        ("a.csv", "id,image,question,answer\n1,a.png,Which?,\n", "a.csv:2: answers: Field required"),
        (
            "a.tsv",
            "id\timage\tquestion\tanswer\n1\t" + "?" * 99 + "\tW?\tred\n",
            "a.tsv:2: image .* neither",
        ),
        ("a.csv", "id,image,question,answer\n", "a.csv holds no sample"),
        ("a.parquet", "no Parquet", "cannot read the data file .*a.parquet"),
        ("a.xlsx", "", r"\.xlsx is none of JSON Lines \(.jsonl\), Parquet, CSV, TSV"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        OwnData(tmp_path / name)


def test_a_bad_row_of_parquet_is_named_with_its_number(tmp_path):
    told = rows(lambda colour: {"bytes": png(colour), "path": None})
    told[1]["prompt"] = None
    pq.write_table(pa.Table.from_pylist(told), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 2: prompt: Field required"):
        OwnData(tmp_path / "a.parquet")


@pytest.mark.parametrize("file", ["train/metadata.jsonl", "validation/metadata.jsonl"])
def test_a_row_that_names_its_split_is_in_that_and_not_in_that_of_its_folder(tmp_path, file):
    (tmp_path / file).parent.mkdir()
    named((tmp_path / file).parent)
    told = [{"file_name": row.pop("image"), **row} for row in rows(lambda colour: f"{colour}.png")]
    del told[0]["split"]
    told[0]["id"] = "unnamed"
    (tmp_path / file).write_text("\n".join(map(json.dumps, told)))
    found = {sample.id: sample.split for sample in OwnData(tmp_path).everything}
    assert found == {"unnamed": (tmp_path / file).parent.name, "validation": "validation", "test": "test"}


def test_numbered_files_of_one_folder_name_no_split(tmp_path):
    for number in range(2):
        told = {"id": str(number), "image": png("red"), "prompt": "Which?", "answers": ["red"]}
        pq.write_table(pa.Table.from_pylist([told]), tmp_path / f"{number:04}.parquet")
    assert len({sample.split for sample in OwnData(tmp_path).everything}) == 1  # made by image


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    with pytest.raises(DataError, match="holds none of JSON Lines"):
        OwnData(tmp_path)
