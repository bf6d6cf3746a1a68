"""The public protos and the copies that C is generated from are one wire.

Judge: protoc's own descriptors of both, flattened to (message, number, name,
label, wire type, type name, packed) and compared as sets; services with their
methods and enums with their values likewise. string and bytes are one wire
type; a proto3 optional is a plain singular field on the wire. To show that the
comparison can fail, it is then run against sets with one deliberate change.

usage: check_wire.py PUBLIC_DIR DERIVED_DIR
"""

import os
import subprocess
import sys
import tempfile

from google.protobuf import descriptor_pb2

Field = descriptor_pb2.FieldDescriptorProto


def load(folder):
    files = []
    for path, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".proto"):
                files.append(os.path.relpath(os.path.join(path, name), folder))
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "set")
        subprocess.run(
            ["protoc", "-I", folder, "--descriptor_set_out=" + out] + sorted(files),
            check=True,
        )
        result = descriptor_pb2.FileDescriptorSet()
        with open(out, "rb") as file:
            result.ParseFromString(file.read())
    return result


def wire_type(field):
    return Field.TYPE_BYTES if field.type == Field.TYPE_STRING else field.type


def members(prefix, message, out):
    name = prefix + "." + message.name
    out.add(("message", name))
    for field in message.field:
        # A real oneof groups fields; one of a single field is mere presence.
        group = ()
        if field.HasField("oneof_index") and not field.proto3_optional:
            group = tuple(
                other.number
                for other in message.field
                if other.HasField("oneof_index")
                and other.oneof_index == field.oneof_index
            )
        present = field.proto3_optional or len(group) == 1
        out.add(("field", name, field.number, field.name, field.label,
                 wire_type(field), field.type_name, field.options.packed,
                 present, group if len(group) > 1 else ()))
    for enum in message.enum_type:
        values(name, enum, out)
    for nested in message.nested_type:
        members(name, nested, out)


def values(prefix, enum, out):
    for value in enum.value:
        out.add(("enum", prefix + "." + enum.name, value.name, value.number))


def flatten(descriptors):
    out = set()
    for file in descriptors.file:
        prefix = "." + file.package
        for message in file.message_type:
            members(prefix, message, out)
        for enum in file.enum_type:
            values(prefix, enum, out)
        for service in file.service:
            for method in service.method:
                out.add(("method", prefix + "." + service.name, method.name,
                         method.input_type, method.output_type,
                         method.client_streaming, method.server_streaming))
    return out


def changed(descriptors, edit):
    copy = descriptor_pb2.FileDescriptorSet()
    copy.CopyFrom(descriptors)
    for file in copy.file:
        for message in file.message_type:
            if message.name == "SamplingParams":
                edit(message)
    return copy


def main(argv):
    public, derived = load(argv[1]), load(argv[2])
    names = [file.name for file in public.file]
    if "godwit/v1/generation.proto" not in names:
        print("the public set lacks generation.proto: wrong folder?")
        return 1
    want, have = flatten(public), flatten(derived)
    for line in sorted(map(repr, want - have)):
        print("only public: ", line)
    for line in sorted(map(repr, have - want)):
        print("only derived:", line)
    if want != have:
        return 1

    edits = {
        "number": lambda m: setattr(m.field[0], "number", 99),
        "type": lambda m: setattr(m.field[1], "type", Field.TYPE_DOUBLE),
        "label": lambda m: setattr(m.field[2], "label", Field.LABEL_REPEATED),
        "presence": lambda m: m.field[0].ClearField("oneof_index"),
        "absence": lambda m: m.field.pop(),
    }
    for name, edit in edits.items():
        if flatten(changed(derived, edit)) == want:
            print("a changed %s was not seen" % name)
            return 1
    print("%d facts agree, %d changes seen" % (len(want), len(edits)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
