from pipeline.notes import Note, Notes


def test_notes_of_one_reason_are_counted_and_the_first_named() -> None:
    notes = Notes()
    for i in range(1200):
        notes.add("object", "left out: no area", f"{i}.xml")
    notes.add("file", "left out: no photo", "a.txt")
    objects, file = notes.all()
    assert str(objects) == "1,200 objects left out: no area (0.xml; 1.xml; 2.xml; ...)"
    assert str(file) == "1 file left out: no photo (a.txt)"


def test_notes_of_several_readers_are_one_note_per_reason() -> None:
    first, second = Notes(), Notes()
    first.add("file", "left out", "a")
    second.extend([*first.all(), Note("file", "left out", 5, ("b", "c", "d")), Note("row", "x", 2)])
    assert second.all() == (Note("file", "left out", 6, ("a", "b", "c")), Note("row", "x", 2))
    assert str(second.all()[1]) == "2 rows x"
