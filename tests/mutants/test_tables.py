from tests.mutants.__main__ import problems, read_tables


def test_the_tables_fit_the_tree() -> None:
    assert list(problems(read_tables())) == []
