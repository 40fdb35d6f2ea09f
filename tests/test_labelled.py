"""Labelled corpora: layers, heads and documents by hand; the treebank's own counts; tables."""

import zipfile

import nltk.data
import numpy as np
import pytest

from toolkit.corpora import documents
from toolkit.errors import UserError
from toolkit.labelled import read_labelled

TREES = """# newdoc id = one
# text = Dogs don't.
1\tDogs\tdog\tNOUN\tNNS\tNumber=Plur\t2\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
2\tdo\tdo\tAUX\tVBP\tNumber=Plur|Tense=Pres\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_
4\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

# newdoc id = two
# text = Run
1\tRun\trun\tVERB\tVB\t_\t0\troot\t_\t_
"""


@pytest.fixture
def shared_nltk(data, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(data / "nltk")])


def refused(*args, **options):
    with pytest.raises(UserError) as error:
        read_labelled(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def labels(layer):
    return [layer[i] for i in range(len(layer.codes))]


def test_trees_by_hand(tmp_path):
    (tmp_path / "a.conllu").write_text(TREES)
    found = read_labelled(tmp_path / "a.conllu")
    assert found.texts == ("Dogs don't.", "Run")
    assert found.words == ["Dogs", "do", "n't", ".", "Run"]
    assert found.starts.tolist() == [0, 4, 5]
    assert found.text_of_word.tolist() == [0, 0, 0, 0, 1]
    assert found.spans.tolist() == [[0, 4], [5, 7], [7, 10], [10, 11], [0, 3]]
    assert labels(found.word_layers["upos"]) == ["NOUN", "AUX", "PART", "PUNCT", "VERB"]
    assert labels(found.word_layers["relation"]) == ["nsubj", "root", "advmod", "punct", "root"]
    assert labels(found.word_layers["Number"]) == ["Plur", "Plur", "", "", ""]
    assert found.word_layers["Tense"].codes.tolist() == [-1, 0, -1, -1, -1]
    assert found.heads.tolist() == [1, -1, 1, 1, -1]
    assert found.documents.tolist() == [0, 1]
    assert found.document_names == ("a.conllu/one", "a.conllu/two")
    assert found.text_layers == {}


def test_a_folder_of_trees_names_documents_as_for_text(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.conllu", "sub/a.conllu"):
        (tmp_path / name).write_text(TREES)
    found = read_labelled(tmp_path)
    assert list(found.document_names) == [document.name for document in documents(tmp_path)]
    assert found.heads.tolist() == [1, -1, 1, 1, -1, 6, -1, 6, 6, -1]


def test_a_table_by_hand(tmp_path):
    (tmp_path / "t.csv").write_text('id,label,text\n1,pos,"good, really\ngood"\n2,neg,bad\n1,pos,fine\n')
    found = read_labelled(tmp_path / "t.csv")
    assert found.texts == ("good, really\ngood", "bad", "fine")
    assert labels(found.text_layers["label"]) == ["pos", "neg", "pos"]
    assert found.documents.tolist() == [0, 1, 2]
    assert found.spans.shape == (0, 2)
    assert found.heads is None
    other = read_labelled(tmp_path / "t.csv", text_column="label", label_column="text", document_column="id")
    assert other.texts == ("pos", "neg", "pos")
    assert other.documents.tolist() == [0, 1, 0]
    assert other.document_names == ("t.csv/1", "t.csv/2")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("text,lable\na,b\n", "unknown column of"),
        ("text,label\na,b\nc\n", "line 3: expected 2 cells"),
        ("text,label\na,b,c\n", "line 2: expected 2 cells"),
        ("text,label\n ,b\n", "line 2: text is blank"),
        ("text,label\na,\n", "line 2: label is blank"),
        ("text,label\n", "no labelled texts"),
        ("", "unknown column of"),
        ('text,label\n"a"b,c\n', "line 2: "),
    ],
)
def test_a_broken_table_is_refused(tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table)
    assert message in refused(tmp_path / "t.csv")


def test_a_row_without_a_document_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,doc\na,b,one\nc,d, \n")
    assert "line 3: doc is blank" in refused(tmp_path / "t.csv", document_column="doc")


def test_options_that_do_not_go_with_the_source_are_refused(tmp_path):
    (tmp_path / "a.conllu").write_text(TREES)
    assert "columns are for a .csv table" in refused(tmp_path / "a.conllu", label_column="upos")
    assert "universal tags are for NLTK" in refused(tmp_path / "a.conllu", universal=True)
    (tmp_path / "a.txt").write_text("text")
    assert "is not labelled: expected" in refused(tmp_path / "a.txt")
    assert "no CoNLL-U file at" in refused(tmp_path / "none.conllu")
    assert "no table at" in refused(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    assert "expected files that end in .conllu" in refused(tmp_path / "empty")


@pytest.mark.parametrize(("name", "sentences", "documents"), [("dev", 2001, 318), ("test", 2077, 316)])
def test_counts_of_the_treebank(data, name, sentences, documents):
    found = read_labelled(data / "ud_english_ewt" / f"{name}.conllu.gz")
    assert (len(found.texts), len(found.document_names)) == (sentences, documents)
    assert len(found.word_layers["upos"].values) == 17
    roots = np.bincount(found.text_of_word[labels_are(found, "relation", "root")], minlength=sentences)
    assert (roots == 1).all()
    within = found.heads >= 0
    assert (found.text_of_word[found.heads[within]] == found.text_of_word[within]).all()
    assert (found.heads < 0).sum() == sentences


@pytest.mark.slow
def test_counts_of_the_training_treebank(data):
    found = read_labelled(data / "ud_english_ewt" / "train.conllu.gz")
    assert (len(found.texts), len(found.spans), len(found.document_names)) == (12_544, 204_577, 540)


def labels_are(found, layer, label):
    return found.word_layers[layer].codes == found.word_layers[layer].values.index(label)


def test_tagged_corpora_by_sentence(shared_nltk):
    brown = read_labelled("nltk:brown/ca01")
    assert brown.words[:4] == ["The", "Fulton", "County", "Grand"]
    assert labels(brown.word_layers["tag"])[:4] == ["AT", "NP-TL", "NN-TL", "JJ-TL"]
    assert brown.text_layers["category"].values == ("news",)
    trees = read_labelled("nltk:treebank/wsj_000[1-3].mrg")
    assert trees.texts[0].endswith("as a nonexecutive director Nov. 29.")
    assert trees.document_names == tuple(f"treebank/wsj_000{i}.mrg" for i in (1, 2, 3))
    assert not any(word.startswith("*") for word in trees.words)
    assert "-NONE-" not in trees.word_layers["tag"].values


@pytest.mark.slow
def test_counts_of_tagged_corpora(shared_nltk):
    chunks = read_labelled("nltk:conll2000")
    assert (len(chunks.texts), len(chunks.spans), len(chunks.document_names)) == (8936 + 2012, 211_727 + 47_377, 2)
    masc = read_labelled("nltk:masc_tagged/written/*")
    assert len(masc.document_names) > 100
    assert all(word.strip() == word != "" for word in masc.words)


def test_sentiment_by_document_and_by_sentence(shared_nltk):
    reviews = read_labelled("nltk:movie_reviews/*/cv00*")
    assert (len(reviews.texts), len(reviews.document_names)) == (20, 20)
    assert labels(reviews.text_layers["category"]) == ["neg"] * 10 + ["pos"] * 10
    polarity = read_labelled("nltk:sentence_polarity")
    assert (len(polarity.texts), len(polarity.document_names)) == (10_662, 10_662)
    assert np.bincount(polarity.text_layers["category"].codes).tolist() == [5331, 5331]
    subjectivity = read_labelled("nltk:subjectivity")
    assert np.bincount(subjectivity.text_layers["category"].codes).tolist() == [5000, 5000]
    assert subjectivity.text_layers["category"].values == ("obj", "subj")


def test_corpora_without_labels_are_refused(shared_nltk):
    assert "has no labels" in refused("nltk:abc")
    assert "did you mean 'brown'" in refused("nltk:bown")
    assert "has no tags" in refused("nltk:movie_reviews", universal=True)


def test_universal_tags_come_from_nltks_table_where_it_is_installed(shared_nltk, data, tmp_path, monkeypatch):
    assert "universal tags need NLTK's table universal_tagset" in refused("nltk:treebank/wsj_0001.mrg", universal=True)
    (tmp_path / "taggers").mkdir()
    table = "NNP\tNOUN\nNNS\tNOUN\nNN\tNOUN\nCD\tNUM\nJJ\tADJ\nMD\tVERB\n"
    with zipfile.ZipFile(tmp_path / "taggers" / "universal_tagset.zip", "w") as archive:
        archive.writestr("universal_tagset/en-ptb.map", table)
        archive.writestr("universal_tagset/universal_tags.py", "")
    monkeypatch.setattr(nltk.data, "path", [str(data / "nltk"), str(tmp_path)])
    found = read_labelled("nltk:treebank/wsj_0001.mrg", universal=True)
    assert labels(found.word_layers["tag"])[:8] == ["NOUN", "NOUN", "X", "NUM", "NOUN", "ADJ", "X", "VERB"]
