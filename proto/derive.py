"""Derive the protos that protoc-c can read from the public ones.

protobuf-c refuses proto3 `optional`, and its C strings end at the first NUL.
So each copy differs in two ways that no byte on the wire shows:

    optional float top_p = 2;   ->  oneof has_top_p { float top_p = 2; }
    string text = 5;            ->  bytes text = 5;      (fields of TEXT)

In C the first reads `if (params->has_top_p_case)`; the second is a
ProtobufCBinaryData with its length. Everything else, comments too, stays.
tests/unit/proto/check_wire.py holds the two sets to each other.

usage: derive.py FROM_DIR TO_DIR FILE.proto...
"""

import os
import re
import sys

# Fields that may hold any text, NUL included.
TEXT = ("text", "content", "original_text")

OPTIONAL = re.compile(
    r"^(\s*)optional\s+([\w.]+)\s+(\w+)\s*=\s*(\d+)\s*(\[[^\]]*\])?\s*;(.*)$"
)
STRING = re.compile(r"^(\s*)string(\s+(?:%s)\s*=)" % "|".join(TEXT))


def derive_line(line):
    match = OPTIONAL.match(line)
    if match:
        indent, kind, name, number, options, rest = match.groups()
        if kind == "string" and name in TEXT:
            kind = "bytes"
        return "%soneof has_%s { %s %s = %s%s; }%s" % (
            indent, name, kind, name, number,
            " " + options if options else "", rest,
        )
    return STRING.sub(r"\1bytes\2", line)


def derive(source):
    if not re.search(r'^syntax\s*=\s*"proto3"', source, re.MULTILINE):
        raise ValueError("not proto3")
    text = "\n".join(derive_line(line) for line in source.split("\n"))
    left = re.search(r"^\s*optional\b.*$", text, re.MULTILINE)
    if left:
        raise ValueError("write this on one line: %s" % left.group(0).strip())
    return text


def main(argv):
    if len(argv) < 4:
        sys.stderr.write(__doc__)
        return 2
    for name in argv[3:]:
        with open(os.path.join(argv[1], name), encoding="utf-8") as file:
            source = file.read()
        try:
            text = derive(source)
        except ValueError as error:
            sys.stderr.write("derive.py: %s: %s\n" % (name, error))
            return 1
        path = os.path.join(argv[2], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
