"""The options in docs/data.md read files in the layouts of public data sets."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.support.project import Page
from recgrela.data import DataConfig, load
from recgrela.data.formats import read
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import options_of

PAGE = Page("docs/data.md")


def table_rows() -> dict[tuple[str, str], list[str]]:
    """The words of the options by set and file."""
    section = PAGE.file.read_text().partition("## Public data sets")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| `(.+?)`.*? \| (?:`(.+)`)? *\|$", section, re.M)
    return {(name, file): shlex.split(options) for name, file, options in rows}


def settings(words: list[str]) -> dict[str, object]:
    parser = Parser("data")
    parser.add(options_of(DataConfig).values())
    return {key.removeprefix("data."): value for key, value in parser.read(words).items()}


MOVIELENS = {"7": ["20", "10"], "9": ["30", "20"]}
JSON_2018 = (
    '"overall": 5.0, "verified": false, "reviewTime": "03 30, 2005", "style": {"Format:": "Hardcover"}'
)

# By set and file: the content of a small file, and the items of each user in order of time.
FILES: dict[tuple[str, str], tuple[str | bytes, dict[str, list[str]]]] = {
    ("MovieLens 100K", "u.data"): (
        "9\t20\t3\t891717742\n7\t10\t1\t8\n7\t20\t5\t7\n9\t30\t2\t881250949\n",
        MOVIELENS,
    ),
    ("MovieLens 1M, 10M", "ratings.dat"): (
        "9::20::3::978302109\n7::10::1::8\n7::20::4.5::7\n9::30::2::978302108\n",
        MOVIELENS,
    ),
    ("MovieLens 20M, 25M, 32M, latest", "ratings.csv"): (
        "userId,movieId,rating,timestamp\n9,20,3.5,1112486027\n7,10,1.0,8\n7,20,4.5,7\n9,30,2.0,1112484676\n",
        MOVIELENS,
    ),
    ("Amazon 2014", "ratings_Books.csv"): (
        "A1,0001713353,5.0,1112140800\nA2,0002005395,3.0,1112140700\nA1,0002005395,4.0,1112140799\n",
        {"A1": ["0002005395", "0001713353"], "A2": ["0002005395"]},
    ),
    ("Amazon 2014, 2018", "Books_5.json.gz"): (
        f'{{{JSON_2018}, "reviewerID": "A1", "asin": "0001713353", "unixReviewTime": 1112140800}}\n'
        f'{{{JSON_2018}, "reviewerID": "A2", "asin": "0002005395", "unixReviewTime": 1112140700}}\n'
        f'{{{JSON_2018}, "reviewerID": "A1", "asin": "0002005395", "unixReviewTime": 1112140799, "x": 2}}\n',
        {"A1": ["0002005395", "0001713353"], "A2": ["0002005395"]},
    ),
    ("Amazon 2018", "Books.csv"): (
        "0001713353,A1,5.0,1112140800\n0002005395,A2,3.0,1112140700\n0002005395,A1,4.0,1112140799\n",
        {"A1": ["0002005395", "0001713353"], "A2": ["0002005395"]},
    ),
    ("Amazon 2023", "Books.csv.gz"): (
        "user_id,parent_asin,rating,timestamp\nAF,B00,5.0,1588687728923\nAF,B01,4.0,1588687728922\n",
        {"AF": ["B01", "B00"]},
    ),
    ("Amazon 2023", "Books.jsonl.gz"): (
        '{"rating": 5.0, "title": "Café", "text": "x, \\"y\\"", "images": [], "asin": "B0", '
        '"parent_asin": "B00", "user_id": "AF", "timestamp": 1588687728923, "helpful_vote": 0}\n'
        '{"rating": 4.0, "title": "", "text": "", "images": [{"small_image_url": "u"}], "asin": "B1", '
        '"parent_asin": "B01", "user_id": "AF", "timestamp": 1588687728922, "helpful_vote": 1, '
        '"verified_purchase": true}\n',
        {"AF": ["B01", "B00"]},
    ),
    ("Steam", "steam.jsonl"): (
        "{u'username': u'Chaos \"Syren', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', "
        "u'early_access': False, u'text': u'caf\\xe9'}\n"
        "{u'username': u'Chaos \"Syren', u'hours': 51.1, u'product_id': u'328100', u'date': u'2017-12-16'}\n",
        {'Chaos "Syren': ["328100", "725280"]},
    ),
    ("Yelp", "yelp_academic_dataset_review.json"): (
        '{"review_id":"KU_O","user_id":"mh_-","business_id":"XQfw","stars":3.0,"useful":0,"text":"a\\nb",'
        '"date":"2018-07-07 22:09:11"}\n'
        '{"review_id":"BiTu","user_id":"mh_-","business_id":"7ATY","stars":5.0,"useful":1,"text":"",'
        '"date":"2012-01-03 15:28:18"}\n',
        {"mh_-": ["7ATY", "XQfw"]},
    ),
    ("Gowalla", "loc-gowalla_totalCheckins.txt.gz"): (
        "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n"
        "0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315\n",
        {"0": ["420315", "22847"]},
    ),
    ("Foursquare NYC, TKY", "dataset_TSMC2014_NYC.txt"): (
        "470\t49bbd6c0\t4bf58dd8\tCafé\t40.71\t-74.00\t-240\tTue Apr 03 18:00:09 +0000 2012\n"
        "470\t4a43c0ae\t4bf58dd8\tBridge\t40.60\t-74.04\t-240\tTue Apr 03 18:00:06 +0000 2012\n".encode(
            "latin-1"
        ),
        {"470": ["4a43c0ae", "49bbd6c0"]},
    ),
    ("LastFM 1K, artists", "userid-timestamp-artid-artname-traid-traname.tsv"): (
        'user_000001\t2009-05-04T23:08:57Z\tf1b1\tDeep Dish\t\t"Heroes\n'
        'user_000001\t2009-05-04T13:54:10Z\ta769\t坂本龍一\tt1\tComposition 0919 (7" Live)\n'
        "user_000001\t2009-05-04T13:53:10Z\t\tnobody\tt2\tx\n",
        {"user_000001": ["a769", "f1b1"]},
    ),
    ("LFM-1b, tracks", "LFM-1b_LEs.txt"): (
        "31435741\t2\t4\t4\t1385212958\n31435741\t2\t4\t7\t1385212642\n",
        {"31435741": ["7", "4"]},
    ),
    ("Netflix Prize", "netflix.csv"): (
        "1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n2:\n1488844,4,2005-09-05\n",
        {"1488844": ["2", "1"], "822109": ["1"]},
    ),
    ("RetailRocket", "events.csv"): (
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
        "1433221332116,257597,transaction,248676,12\n",
        {"257597": ["248676", "355908"]},
    ),
    ("Yoochoose", "yoochoose-clicks.dat"): (
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:51:09.276Z,214536500,S\n",
        {"1": ["214536500", "214536502"]},
    ),
    ("Diginetica", "train-item-views.csv"): (
        "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n1;NA;31331;1031018;2016-05-09\n"
        "1;NA;32118;243569;2016-05-09\n",
        {"1": ["32118", "81766", "31331"]},
    ),
    ("Taobao", "UserBehavior.csv"): (
        "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,pv,1511561733\n1,2576651,149192,pv,1511542733\n",
        {"1": ["2576651", "2268318", "2333346"]},
    ),
    ("Tmall", "user_log_format1.csv"): (
        "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n328862,323294,833,2882,2661.0,0829,0\n"
        "328862,844400,1271,2882,,0511,2\n",
        {"328862": ["844400", "323294"]},
    ),
    ("H&M", "transactions_train.csv"): (
        "t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-20,000058a12d5b,0663713001,0.0508,2\n"
        "2018-09-20,000058a12d5b,0541518023,0.0304,2\n2018-09-19,000058a12d5b,0505221004,0.0152,2\n",
        {"000058a12d5b": ["0505221004", "0663713001", "0541518023"]},
    ),
    ("MIND, histories", "mind.txt"): (
        "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
        "2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-1\n"
        "3\tU13740\t11/13/2019 9:05:58 AM\tN55189 N42782\tN1-0\n",
        {"U13740": ["N55189", "N42782"]},
    ),
    ("KuaiRand", "log_standard_4_08_to_4_21_pure.csv"): (
        "user_id,video_id,date,hourmin,time_ms,is_click\n0,5099,20220408,1200,1649390501001,1\n"
        "0,4106,20220408,1200,1649390501000,0\n",
        {"0": ["4106", "5099"]},
    ),
    ("XLong", "xlong.txt"): (
        "22\t0\t1,2, 3\t4\t9\n23\t0\t3\t1\t8\n",
        {"1": ["1", "2", "3", "4"], "2": ["3", "1"]},
    ),
    ("SASRec, BERT4Rec: an event a line", "Beauty.txt"): (
        "1 1\n1 3\n1 2\n2 3\n",
        {"1": ["1", "3", "2"], "2": ["3"]},
    ),
    ("S3-Rec and others: a user a line", "Beauty.txt"): (
        "1 1 3 2 \n2 3\n",
        {"1": ["1", "3", "2"], "2": ["3"]},
    ),
    ("runs of TREC, by rank", "run.txt"): (
        "301 Q0 FT911-3   2  14.2 mine\n301 Q0  LA1-1    1  15.0 mine\n",
        {"301": ["LA1-1", "FT911-3"]},
    ),
}
# The files that commands of the page convert, by the result.
RAW = {
    "netflix.csv": "combined_data_1.txt",
    "steam.jsonl": "steam_reviews.json",
    "mind.txt": "behaviors.tsv",
    "xlong.txt": "train_corpus_total_dual.txt",
}


def convert(folder: Path, raw: str, result: str) -> None:
    """Runs the command of the page that writes a file, on a raw one and empty ones beside it."""
    (block,) = [fence.text for fence in PAGE.fences() if fence.language == "sh"]
    commands = re.split(r"\n(?=awk|python)", block.strip())
    (command,) = [command for command in commands if command.endswith(f"> {result}")]
    if command.startswith("awk") and shutil.which("awk") is None:
        pytest.skip("there is no awk")
    (folder / "test_corpus_total_dual.txt").touch()
    assert raw in command.replace("*", "1")
    command = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(command, shell=True, cwd=folder, check=True)


@pytest.mark.parametrize(("name", "file"), FILES, ids=[" ".join(key) for key in FILES])
def test_the_options_read_the_set(tmp_path: Path, name: str, file: str) -> None:
    content, expected = FILES[name, file]
    content = content if isinstance(content, bytes) else content.encode()
    raw = RAW.get(file, file)
    (tmp_path / raw).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    if raw != file:
        convert(tmp_path, raw, file)
    config = settings(table_rows()[name, file])
    small = {"path": str(tmp_path / file), "min_user_events": 0, "min_item_events": 0}
    data = load(DataConfig(**config | small))
    items = [data.item_ids[item] for item in data.items.tolist()]
    begins = data.offsets.tolist()
    found = {user: items[begins[row] : begins[row + 1]] for row, user in enumerate(data.user_ids)}
    assert found == expected


def test_every_set_of_the_page_is_tested() -> None:
    assert set(table_rows()) == set(FILES)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (
            "combined_data_1.txt",
            FILES["Netflix Prize", "netflix.csv"][0],
            "as in the Netflix Prize; docs/data.md",
        ),
        (
            "steam_reviews.json",
            FILES["Steam", "steam.jsonl"][0],
            "a Python literal, not JSON; docs/data.md has a",
        ),
    ],
)
def test_files_to_convert_say_so(tmp_path: Path, file: str, content: str, expected: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(Exception, match=re.escape(expected)):
        read(DataConfig(path=str(tmp_path / file)))
