import json
import re
from itertools import chain
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from pipeline.errors import SettingsError
from pipeline.model.classes import (
    CLASS_MAP_FOLDER,
    CLASS_MAPS,
    ClassNames,
    class_names,
    labels_not_in,
    read_class_map,
    resolve_labels,
)

IMAGENET = class_names(None, 1000)
VOC_CLASSES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,"
    "person,pottedplant,sheep,sofa,train,tvmonitor"
)
COCO_CLASSES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)
SMALL = ClassNames(
    ("tench", "tiger shark", "crane", "Cardigan", "cardigan", "crane"),
    ("n01440764", "n01491361", "n02012849", "n02113186", "n02963159", "n03126707"),
)


def targets_of(name: str) -> dict[str, tuple[int, ...]]:
    class_map = read_class_map(name, 1000)
    return resolve_labels(class_map, IMAGENET, class_map)


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


# the shipped class maps


def test_the_shipped_maps_are_for_voc_and_coco() -> None:
    assert CLASS_MAPS == ("coco", "voc")


@pytest.mark.parametrize(("name", "classes"), [("voc", VOC_CLASSES), ("coco", COCO_CLASSES)])
def test_a_shipped_map_has_every_class_of_its_dataset(name: str, classes: str) -> None:
    assert ",".join(targets_of(name)) == classes
    assert len(targets_of(name)) == {"voc": 20, "coco": 80}[name]


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_a_shipped_map_says_beside_each_index_what_it_is(name: str) -> None:
    content = json.loads((CLASS_MAP_FOLDER / f"{name}.json").read_text())
    for entry, note in chain.from_iterable(entries.items() for entries in content.values()):
        assert note == " ... ".join(IMAGENET.names[int(end)] for end in entry.split("-"))


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_no_imagenet_class_is_in_two_classes_of_a_shipped_map(name: str) -> None:
    indices = list(chain.from_iterable(targets_of(name).values()))
    assert len(indices) == len(set(indices))


def test_the_maps_have_no_target_exactly_where_imagenet_has_no_such_class() -> None:
    assert [label for label, targets in targets_of("voc").items() if not targets] == ["person"]
    without = [label for label, targets in targets_of("coco").items() if not targets]
    assert ",".join(without) == (
        "person,fire hydrant,stop sign,giraffe,suitcase,frisbee,snowboard,kite,baseball bat,"
        "baseball glove,skateboard,surfboard,fork,carrot,donut,cake,scissors,toothbrush"
    )


@pytest.mark.parametrize(
    ("name", "label", "members", "strangers"),
    [
        ("voc", "dog", "Chihuahua,pug,Samoyed,Mexican hairless", "timber wolf,dingo,dhole,red fox"),
        ("voc", "cat", "tabby,tiger cat,Egyptian cat", "cougar,lion,Madagascar cat"),
        ("voc", "bird", "cock,ostrich,drake,kite,king penguin,albatross,crane bird", "tusker"),
        ("voc", "cow", "ox", "water buffalo,bison"),
        ("voc", "sheep", "ram,bighorn", "ibex"),
        ("voc", "bicycle", "mountain bike,unicycle", "motor scooter"),
        ("voc", "tvmonitor", "television,monitor", "laptop,desktop computer,window screen"),
        ("voc", "train", "bullet train,steam locomotive", "streetcar"),
        ("coco", "train", "streetcar", "trolleybus"),
        ("coco", "bear", "ice bear,giant panda", "lesser panda,koala,teddy"),
        ("coco", "sports ball", "ping-pong ball,rugby ball", "puck,racket"),
        ("coco", "laptop", "notebook", "desktop computer"),
        ("coco", "mouse", "mouse", "mousetrap"),
        ("coco", "cup", "coffee mug,cup", "goblet,espresso"),
        ("coco", "truck", "fire engine,pickup", "ambulance,tank"),
    ],
)
def test_a_shipped_class_holds_its_kind_and_not_the_look_alikes(
    name: str, label: str, members: str, strangers: str
) -> None:
    found = {IMAGENET.names[index] for index in targets_of(name)[label]}
    assert found >= set(members.split(","))
    assert not found & set(strangers.split(","))


def test_the_large_groups_have_imagenets_counts() -> None:
    targets = targets_of("voc")
    assert [len(targets[label]) for label in ("dog", "bird", "cat")] == [118, 59, 5]


def test_a_shipped_map_is_refused_for_a_model_of_other_classes() -> None:
    with pytest.raises(SettingsError, match="the model has 20"):
        read_class_map("voc", 20)


# class maps of the user


def test_a_map_takes_indices_ranges_synsets_and_names_without_repeats(tmp_path: Path) -> None:
    path = write_json(tmp_path / "map.json", {"fish": [1, "0-1", "n01440764"], "dog": ["Cardigan"]})
    class_map = read_class_map(str(path), 6)
    assert resolve_labels(["fish", "dog", "absent"], SMALL, class_map) == {
        "fish": (1, 0),
        "dog": (3,),
        "absent": (),
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["crane"], r"class map, 'a': 'crane' is the name of classes 2, 5"),
        ([6], r"class index 6 is out of range; valid: 0 to 5"),
        (["4-6"], r"class index 6 is out of range"),
        (["3-2"], r"range '3-2' is empty"),
        (["tensh"], r"no class 'tensh' \(did you mean 'tench'"),
    ],
)
def test_a_wrong_entry_names_its_class(tmp_path: Path, entries: list[object], message: str) -> None:
    path = write_json(tmp_path / "map.json", {"a": entries})
    with pytest.raises(SettingsError, match=message):
        resolve_labels(["a"], SMALL, read_class_map(str(path), 6))


def test_a_map_may_begin_with_a_byte_order_mark_or_be_in_utf16(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text('{"caf\u00e9": [1]}', encoding=encoding)
        assert read_class_map(str(path), 6) == {"caf\u00e9": ("1",)}
    path.write_text("caf\u00e9: [1]")
    with pytest.raises(SettingsError, match=r"map\.json is not JSON.* write it as JSON in UTF-8"):
        read_class_map(str(path), 6)


@pytest.mark.parametrize("content", [[1, 2], {"dog": 3}, {"dog": [1.5]}, {"dog": [True]}])
def test_a_map_of_another_shape_is_refused(tmp_path: Path, content: object) -> None:
    path = write_json(tmp_path / "map.json", content)
    with pytest.raises(SettingsError, match=re.escape(str(path))):
        read_class_map(str(path), 6)


def test_an_unknown_map_names_the_valid_ones() -> None:
    with pytest.raises(SettingsError, match="'vok'; valid: coco, voc, or a JSON file"):
        read_class_map("vok", 1000)


def test_a_map_that_gives_no_target_to_any_label_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"to any of the set's labels \(zebu\); it has: dog"):
        resolve_labels(["zebu"], SMALL, {"dog": ("3",)})


def test_names_of_a_map_are_compared_as_those_of_a_model() -> None:
    class_map = {"Traffic_Light": ("0",), "Cow": ("1",), "cow": ("2",)}
    assert resolve_labels(["traffic light", "cow", "Cow", "COW"], SMALL, class_map) == {
        "traffic light": (0,),
        "cow": (2,),
        "Cow": (1,),
        "COW": (),
    }
    assert labels_not_in(class_map, ["traffic light", "cow", "COW"]) == ["'COW'"]


# labels without a class map


def test_a_label_is_an_index_a_synset_or_a_name() -> None:
    assert resolve_labels(["5", "n01491361", "Tench", "tiger_shark"], SMALL) == {
        "5": (5,),
        "n01491361": (1,),
        "Tench": (0,),
        "tiger_shark": (1,),
    }


def test_labels_that_are_numbers_are_names_where_all_of_them_are_names_of_classes() -> None:
    from_one = ClassNames(("1", "2", "3"))
    assert resolve_labels(["1", "3"], from_one) == {"1": (0,), "3": (2,)}
    assert resolve_labels(["0", "2"], ClassNames(("5", "10", "20"))) == {"0": (0,), "2": (2,)}
    assert resolve_labels(["0", "3"], ClassNames(("0", "1", "2", "x"))) == {"0": (0,), "3": (3,)}
    assert resolve_labels(["a"], ClassNames(("3", "0")), {"a": ("0",)}) == {"a": (0,)}
    with pytest.raises(SettingsError, match=r"'1' is the name of class 0, and '0' is no name"):
        resolve_labels(["0", "1"], from_one)


def test_a_name_as_written_wins_over_the_same_name_in_another_case() -> None:
    assert resolve_labels(["Cardigan", "cardigan"], SMALL) == {"Cardigan": (3,), "cardigan": (4,)}
    with pytest.raises(SettingsError, match="'CARDIGAN' is the name of classes 3, 4"):
        resolve_labels(["CARDIGAN"], SMALL)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("crane", "'crane' is the name of classes 2, 5; give the index"),
        ("6", "class index 6 is out of range; valid: 0 to 5"),
        ("-1", "class index -1 is out of range"),
        ("n99999999", "no class 'n99999999'"),
        ("tigershark", r"no class 'tigershark' \(did you mean 'tiger shark'"),
    ],
)
def test_a_label_that_is_no_class_is_refused(label: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_labels(["tench", label], SMALL)


def test_every_wrong_label_is_counted_and_the_way_out_named() -> None:
    with pytest.raises(SettingsError, match=r"2 of 3 labels .*--class-map \(coco, voc"):
        resolve_labels(["person", "tench", "diningtable"], IMAGENET)


def test_names_may_be_synsets() -> None:
    named = ClassNames(("n01443537", "n01440764"))
    assert resolve_labels(["n01440764", "n01443537_goldfish"], named) == {
        "n01440764": (1,),
        "n01443537_goldfish": (0,),
    }
    with pytest.raises(SettingsError, match="n02012849"):
        resolve_labels(["n02012849"], named)


def test_a_synset_without_known_synsets_asks_for_the_class_index() -> None:
    with pytest.raises(SettingsError, match="--class-index FILE"):
        resolve_labels(["n01440764"], class_names(None, 5))


def test_imagenets_synsets_are_in_the_order_of_its_classes() -> None:
    assert IMAGENET.synsets is not None
    assert list(IMAGENET.synsets) == sorted(set(IMAGENET.synsets))
    reference = ImageNetInfo("imagenet-1k").label_names()
    assert list(IMAGENET.synsets) == reference
    assert resolve_labels(["n02012849", "n15075141"], IMAGENET) == {
        "n02012849": (134,),
        "n15075141": (999,),
    }


def test_imagenets_own_class_index_has_the_same_synsets(shared_data: Path) -> None:
    named = class_names(str(shared_data / "imagenet" / "imagenet_class_index.json"), 1000)
    assert named.synsets == IMAGENET.synsets


def test_a_label_may_be_a_synset_with_a_name_or_several_names() -> None:
    assert resolve_labels(["n02012849_crane", "n01491361 shark", "n01440764-x"], SMALL) == {
        "n02012849_crane": (2,),
        "n01491361 shark": (1,),
        "n01440764-x": (0,),
    }
    assert resolve_labels(["Tench, Tinca tinca", "selachian,tiger_shark"], SMALL) == {
        "Tench, Tinca tinca": (0,),
        "selachian,tiger_shark": (1,),
    }
    for label in ("crane, bird", "tench, tiger shark", "n99999999_tench", "fish, bird"):
        with pytest.raises(SettingsError, match=label):
            resolve_labels([label], SMALL)
    exact = ClassNames(("tench", "tench, small"))
    assert resolve_labels(["tench, small"], exact) == {"tench, small": (1,)}


def test_a_name_with_commas_is_that_of_the_class_without_them_before_one_of_its_parts() -> None:
    label = "maillot, tank suit"  # ImageNet's name of 639; its 638 is `maillot`
    assert resolve_labels([label], IMAGENET) == {label: (639,)}


def test_a_set_without_labels_has_no_targets() -> None:
    assert resolve_labels([], IMAGENET) == {}


# class names


def test_a_model_of_1000_classes_has_imagenets_names_by_default() -> None:
    assert [IMAGENET.names[index] for index in (0, 207, 999)] == [
        "tench",
        "golden retriever",
        "toilet tissue",
    ]


def test_a_model_of_other_classes_has_numbered_names_by_default() -> None:
    assert class_names(None, 3).names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("file_name", "text", "synsets"),
    [
        ("index.json", '{"1": ["n00000001", "b c"], "0": ["n00000000", "a"]}', True),
        ("list.json", '["a", "b c"]', False),
        ("id2label.json", '{"1": "b c", "0": "a"}', False),
        ("class_to_idx.json", '{"b c": 1, "a": 0}', False),
        ("names.txt", "a\nb c\n", False),
        ("config.json", '{"id2label": {"1": "b c", "0": "a"}, "label2id": {}}', False),
        ("pairs.json", '[["n00000000", "a"], ["n00000001", "b c"]]', True),
        ("synsets.txt", "n00000000\ta\nn00000001\tb c\n", True),
        ("synsets.csv", "n00000000,a\nn00000001,b c\n", True),
        ("numbered.txt", "0: a\n1: b c\n", False),
        ("numbered.txt", "0 a\n1 b c\n", False),
        ("numbered.csv", "1,a\n2,b c\n", False),
        ("dict.txt", "{0: 'a',\n 1: \"b c\"}\n", False),
        ("quoted.txt", '"a"\n"b c"\n', False),
        ("numbers_last.txt", "a 0\nb c 1\n", False),
    ],
)
def test_names_are_read_from_each_format(
    tmp_path: Path, file_name: str, text: str, synsets: bool
) -> None:
    (tmp_path / file_name).write_text(text)
    named = class_names(str(tmp_path / file_name), 2)
    assert named.names == ("a", "b c")
    assert named.synsets == (("n00000000", "n00000001") if synsets else None)
    with pytest.raises(SettingsError, match="names 2 classes, but the model has 3"):
        class_names(str(tmp_path / file_name), 3)


@pytest.mark.parametrize(
    "names", [("level 0", "level 1"), ("0 a", "2 b"), ("1", "0"), ("'tis", "a")]
)
def test_numbers_and_quotes_that_are_parts_of_names_stay(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert class_names(str(tmp_path / "names.txt"), 2).names == names


@pytest.mark.parametrize(
    "text", ['{"1": ["n0", "a"]}', '{"1": "ab"}', '{"a": 1}', '{"a": true}', "[1, 2]", "{", "3"]
)
def test_names_in_another_format_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(str(path))):
        class_names(str(path), 1)
    with pytest.raises(SettingsError, match="no --class-index file"):
        class_names(str(tmp_path / "absent.json"), 1)


def test_imagenets_own_class_index_agrees_with_the_default_names(shared_data: Path) -> None:
    named = class_names(str(shared_data / "imagenet" / "imagenet_class_index.json"), 1000)
    written = [name.replace("_", " ") for name in named.names]
    differ = [index for index in range(1000) if written[index] != IMAGENET.names[index]]
    assert [IMAGENET.names[index] for index in differ] == ["crane bird", "maillot tank suit"]
    assert resolve_labels(["n02012849", "n03126707"], named) == {
        "n02012849": (134,),
        "n03126707": (517,),
    }
    with pytest.raises(SettingsError, match="'maillot' is the name of classes 638, 639"):
        resolve_labels(["maillot"], named)
