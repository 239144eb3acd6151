"""Known public data sets: where they are, under which terms, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

from recgrela.system.download import Checksum


@dataclass(frozen=True)
class PublicSet:
    """A set that may be downloaded without an account.

    Attributes:
        name: its name for `get`.
        title: its full name.
        url: address of the file.
        page: address of the page that describes it.
        terms: terms of use, in short; the page has all of them.
        cite: what to cite.
        checksum: as its publisher, or two independent sources, give it; None if there is none.
        settings: options that read the file, besides --data.path.
        unpack: the path, or a pattern, in a tar archive that must be extracted; "" if the file is read as it
            is.
    """

    name: str
    title: str
    url: str
    page: str
    terms: str
    cite: str
    checksum: Checksum | None = None
    settings: str = ""
    unpack: str = ""

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class ManualSet:
    """A set that needs an account or a consent, so that it is not downloaded.

    Attributes:
        name: its name for `get`.
        title: its full name.
        page: address of the page to get it from.
        why: why it is not downloaded.
        files: the files to take.
        settings: options that read them, besides --data.path.
    """

    name: str
    title: str
    page: str
    why: str
    files: str
    settings: str


def _movielens(name: str, md5: str) -> PublicSet:
    size = name.removeprefix("ml-").upper()
    return PublicSet(
        name,
        f"MovieLens {size}",
        f"https://files.grouplens.org/datasets/movielens/{name}.zip",
        f"https://grouplens.org/datasets/movielens/{size.lower()}/",
        "research use; no redistribution without permission, no commercial use without permission",
        "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015",
        Checksum("md5", md5),
    )


def _check_ins(name: str, title: str) -> PublicSet:
    return PublicSet(
        name,
        f"{title} check-ins",
        f"https://snap.stanford.edu/data/loc-{name}_totalCheckins.txt.gz",
        f"https://snap.stanford.edu/data/loc-{name}.html",
        "public for research; no licence is stated",
        "Cho, Myers and Leskovec, Friendship and Mobility: User Movement in Location-Based Social "
        "Networks, KDD 2011",
        settings="--data.columns user_id,timestamp,_,_,item_id",
    )


def _amazon(category: str, sha256: str | None = None) -> PublicSet:
    return PublicSet(
        f"amazon-2023-{category.lower().replace('_', '-')}",
        f"Amazon Reviews 2023, {category.replace('_', ' ')}, ratings of its 5-core",
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/5core/rating_only/"
        f"{category}.csv.gz",
        "https://amazon-reviews-2023.github.io/",
        "public for research; no licence is stated",
        "Hou et al., Bridging Language and Items for Retrieval and Recommendation, arXiv:2403.03952, 2024",
        None if sha256 is None else Checksum("sha256", sha256),
        "--data.item_column parent_asin",
    )


PUBLIC = {
    known.name: known
    for known in (
        _movielens("ml-100k", "0e33842e24a9c977be4e0107933c0723"),
        _movielens("ml-1m", "c4d9eecfca2ab87c1945afe126590906"),
        _movielens("ml-10m", "ce571fd55effeba0271552578f2648bd"),
        _movielens("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3"),
        _movielens("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada"),
        _movielens("ml-32m", "d472be332d4daa821edc399621853b57"),
        _check_ins("gowalla", "Gowalla"),
        _check_ins("brightkite", "Brightkite"),
        _amazon("Beauty_and_Personal_Care"),
        _amazon("Books"),
        _amazon("CDs_and_Vinyl"),
        _amazon("Clothing_Shoes_and_Jewelry"),
        _amazon("Electronics"),
        _amazon("Industrial_and_Scientific"),
        _amazon("Musical_Instruments"),
        _amazon("Toys_and_Games"),
        _amazon("Video_Games", "a2bde5f3b945960d161538c200dd87845e6ee471b46da96410dde61613c6901c"),
        PublicSet(
            "lastfm-1k",
            "Last.fm 1K users",
            "https://zenodo.org/records/6090214/files/lastfm-dataset-1K.tar.gz",
            "https://zenodo.org/records/6090214",
            "non-commercial use, by permission of Last.fm",
            "Celma, Music Recommendation and Discovery in the Long Tail, Springer 2010",
            Checksum("md5", "a79a6808f54f73354789a9fb02cb1e41"),
            settings="--data.columns user_id,timestamp,item_id,_,_,_",
            unpack="lastfm-dataset-1K/userid-timestamp-artid-artname-traid-traname.tsv",
        ),
        PublicSet(
            "kuairand-pure",
            "KuaiRand-Pure",
            "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
            "https://kuairand.com/",
            "CC BY-SA 4.0",
            "Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed "
            "Videos, CIKM 2022",
            settings="--data.item_column video_id --data.time_column time_ms",
            unpack="KuaiRand-Pure/data/log_standard_*.csv",
        ),
    )
}

MANUAL = {
    known.name: known
    for known in (
        ManualSet(
            "netflix",
            "Netflix Prize",
            "https://www.kaggle.com/datasets/netflix-inc/netflix-prize-data",
            "needs an account",
            "combined_data_1.txt to combined_data_4.txt, converted to netflix.csv as docs/data.md says",
            "--data.columns item_id,user_id,rating,timestamp",
        ),
        ManualSet(
            "yoochoose",
            "YOOCHOOSE clicks, RecSys Challenge 2015",
            "https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015",
            "needs an account",
            "yoochoose-clicks.dat, whose users are sessions",
            "--data.columns user_id,timestamp,item_id,_",
        ),
        ManualSet(
            "retailrocket",
            "RetailRocket",
            "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
            "needs an account",
            "events.csv",
            "--data.user_column visitorid --data.item_column itemid",
        ),
        ManualSet(
            "hm",
            "H&M Personalized Fashion Recommendations",
            "https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations",
            "needs an account and consent to the rules of the competition",
            "transactions_train.csv",
            "--data.user_column customer_id --data.item_column article_id --data.time_column t_dat",
        ),
        ManualSet(
            "yelp",
            "Yelp Open Dataset",
            "https://www.yelp.com/dataset",
            "needs consent to its agreement",
            "yelp_academic_dataset_review.json",
            "--data.item_column business_id --data.time_column date",
        ),
        ManualSet(
            "taobao",
            "Taobao User Behavior",
            "https://tianchi.aliyun.com/dataset/649",
            "needs an account",
            "UserBehavior.csv",
            "--data.columns user_id,item_id,_,_,timestamp",
        ),
        ManualSet(
            "mind",
            "MIND, Microsoft News",
            "https://msnews.github.io/",
            "needs consent to the Microsoft Research licence",
            "behaviors.tsv, converted to mind.txt as docs/data.md says",
            "--data.format sequences --data.order file",
        ),
        ManualSet(
            "foursquare",
            "Foursquare NYC and Tokyo check-ins",
            "https://sites.google.com/site/yangdingqi/home/foursquare-dataset",
            "has no stable address",
            "dataset_TSMC2014_NYC.txt or dataset_TSMC2014_TKY.txt, converted to UTF-8",
            "--data.columns user_id,item_id,_,_,_,_,_,timestamp --data.time_format '%a %b %d %H:%M:%S %z %Y'",
        ),
        ManualSet(
            "lfm-1b",
            "LFM-1b",
            "http://www.cp.jku.at/datasets/LFM-1b/",
            "is no longer published by its authors",
            "LFM-1b_LEs.txt",
            "--data.columns user_id,_,_,item_id,timestamp",
        ),
    )
}
