"""The command lines of ``kd models`` and ``kd data``; ``kd.library.command`` runs them."""

from __future__ import annotations

from typing import Any


def add_parsers(commands: Any) -> None:
    """``kd models ...`` and ``kd data ...``."""
    for group, thing in (("models", "model"), ("data", "data set")):
        parser = commands.add_parser(group, help=f"{thing}s by name: list, download, verify, add ...")
        parser.set_defaults(parser=parser)
        actions = parser.add_subparsers(dest="action", metavar="ACTION")
        listed = actions.add_parser("list", help="every name, what it is, and whether it is here")
        show = actions.add_parser("show", help=f"all that is known of one {thing}")
        download = actions.add_parser("download", help="into the store, once; needs no account and no token")
        verify = actions.add_parser("verify", help="whether files are as they were noted, and fit together")
        remove = actions.add_parser("remove", help="out of the store")
        compare = actions.add_parser("compare", help="side by side")
        show.add_argument("name", metavar="NAME")
        verify.add_argument("name", nargs="*", metavar="NAME", help="default: all in the store")
        for needs_names in (remove, compare):
            needs_names.add_argument("name", nargs="+", metavar="NAME")
        download.add_argument("name", nargs="*", metavar="NAME")
        download.add_argument(
            "--new-checksums", action="store_true", help="accept what differs from an earlier download"
        )
        for told in (listed, show, verify, compare):
            told.add_argument("--json", action="store_true", help="for scripts")
        add = actions.add_parser("add", help="your own, under a name")
        add.add_argument("name", metavar="NAME")
        if group == "models":
            add.add_argument("path", metavar="DIR", help="config.json, weights and a tokenizer")
            add.add_argument("--licence", help="what it may be used for, for the lists")
            download.add_argument("--all-teachers", action="store_true", help="all whose size suits a teacher")
            download.add_argument("--all-students", action="store_true", help="all whose size suits a student")
            convert = actions.add_parser("convert", help="a TensorFlow checkpoint of BERT, or a pickled one")
            convert.add_argument("path", metavar="DIR", help="bert_config.json, vocab.txt, X.index and X.data-*")
            convert.add_argument("--out", metavar="DIR", help="default: DIR-converted beside it")
            case = convert.add_mutually_exclusive_group()
            case.add_argument("--uncased", dest="lower_case", action="store_true", default=None, help="its tokenizer "
                              "takes capitals for small letters (default: as vocab.txt shows)")  # fmt: skip
            case.add_argument("--cased", dest="lower_case", action="store_false", help="it does not")
        else:
            add.add_argument(
                "path", metavar="FILE", help="a file of texts, or a directory with train.*, validation.* ..."
            )
            add.add_argument("--task", help="as data.task")
            add.add_argument("--text", metavar="COLUMN", help="as data.text; FIRST,SECOND for pairs")
            add.add_argument("--label", metavar="COLUMN", help="as data.label")
            download.add_argument("--all", action="store_true")
