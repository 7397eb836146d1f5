#!/usr/bin/env python3
"""Judges a virtfold archive, and nothing of virtfold is in it: written from driver/archive/FORMAT.md alone.

    virtfold_reader.py ARCHIVE [--identity KEYFILE] [--digests MIB] [--extract DIR]

Prints what is in the archive and exits with 0, or says what contradicts FORMAT.md and exits with 1. Python's standard library,
and the commands zstd, age and ssh-keygen. BLAKE3 is here in a hundred lines, which makes it slow: of the body's chunks it
checks as many as fit --digests MiB (default: the last one, where that is short), the root always.
"""

import argparse
import base64
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

MIB = 1 << 20
ZERO_BLOCK = bytes(512)
SKIPPABLE, TABLE_MAGIC, TABLE_END = 0x184D2A55, 0x184D2A5E, 0x8F92EAB1
TARGET = re.compile(r"[A-Za-z0-9_-]{1,32}\Z")
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(Z|[+-]\d\d:\d\d)\Z")


class Fault(Exception):
    """What contradicts the format."""


def demand(holds, what):
    if not holds:
        raise Fault(what)


# BLAKE3, after its specification, section 2.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIXES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
SCHEDULES = [tuple(range(16))]
for _ in range(6):
    SCHEDULES.append(tuple(SCHEDULES[-1][i] for i in ORDER))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF


def compress(value, block, counter, length, flags):
    v = [*value, *IV[:4], counter & MASK, counter >> 32, length, flags]
    m = struct.unpack("<16I", block)
    for schedule in SCHEDULES:
        for turn, (a, b, c, d) in enumerate(MIXES):
            x = (v[a] + v[b] + m[schedule[2 * turn]]) & MASK
            y = v[d] ^ x
            y = (y >> 16 | y << 16) & MASK
            z = (v[c] + y) & MASK
            w = v[b] ^ z
            w = (w >> 12 | w << 20) & MASK
            x = (x + w + m[schedule[2 * turn + 1]]) & MASK
            y ^= x
            y = (y >> 8 | y << 24) & MASK
            z = (z + y) & MASK
            w ^= z
            v[a], v[b], v[c], v[d] = x, (w >> 7 | w << 25) & MASK, z, y
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3_node(data, counter, flags):
    """The chaining value of a subtree whose first chunk has that number; `flags` is ROOT for the whole."""
    if len(data) <= 1024:
        value, start = IV, CHUNK_START
        blocks = [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
        for i, block in enumerate(blocks):
            last = CHUNK_END | flags if i + 1 == len(blocks) else 0
            value = compress(value, block.ljust(64, b"\0"), counter, len(block), start | last)
            start = 0
        return value
    # The left side is the largest power of two of whole chunks that leaves something on the right.
    left = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
    pair = blake3_node(data[:left], counter, 0) + blake3_node(data[left:], counter + left // 1024, 0)
    return compress(IV, struct.pack("<16I", *pair), 0, 64, PARENT | flags)


def blake3(data):
    return struct.pack("<8I", *blake3_node(data, 0, ROOT))


CRC_TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
    CRC_TABLE.append(n)


def crc32c(data):
    crc = MASK
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ MASK


# Encrypted, framed, plain.

def piped(command, data):
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    demand(done.returncode == 0, f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def decrypted(data, identity):
    end = re.search(rb"^--- [A-Za-z0-9+/]{43}\n", data[:64 << 10], re.M)
    demand(end, "the age header has no end in 64 KiB")
    demand(b"\n-> scrypt " not in data[:end.end()], "it is encrypted with a passphrase")
    demand(identity, "it is encrypted, and there is no identity")
    # Zeros may follow; the last piece's authenticator may end with some.
    content = len(data.rstrip(b"\0"))
    for length in [len(data), *range(content, min(content + 17, len(data)))]:
        try:
            clear = piped(["age", "-d", "-i", identity], data[:length])
            break
        except Fault as fault:
            refused = fault
    else:
        raise refused
    data = data[:length]
    pieces = -(-len(clear) // 65536)
    demand(len(data) == end.end() + 16 + len(clear) + 16 * pieces, "its pieces are not where they should be")
    return clear


class Frames:
    """The frames of a framed archive."""

    def __init__(self, data):
        self.starts, self.ids, entries, at = [], set(), [], 0
        stream = 0
        while data[at:at + 4] == struct.pack("<I", SKIPPABLE):
            head = data[at:at + 100]
            demand(len(head) == 100, "it ends in a skippable frame")
            magic, size, tag, version = struct.unpack("<II8sI", head[:20])
            number, offset, length, stored, crc = struct.unpack("<QQIII", head[36:64])
            demand(size == 92 and tag == b"VIRTFOLD" and version == 1, f"frame {len(self.starts)} is none of ours")
            demand(crc32c(head[:96]) == struct.unpack("<I", head[96:])[0], f"the header of frame {number} has another CRC")
            demand((number, offset) == (len(self.starts), stream), f"frame {number} is out of its place")
            demand(1 <= length <= MIB and 1 <= stored <= 1052736, f"frame {number} has impossible lengths")
            body = data[at + 100:at + 100 + stored]
            demand(len(body) == stored, f"frame {number} is cut")
            self.check_zstd(number, body, length)
            if len(body) <= 4096:
                demand(crc32c(body) == crc, f"frame {number} has another CRC")
            self.ids.add(head[20:36].hex())
            self.starts.append((stream, length, head[64:96]))
            entries += [(100, 0), (stored, length)]
            stream += length
            at += 100 + stored
        demand(self.starts, "it has no frames")
        demand(len(self.ids) == 1, "its frames are of several archives")
        table = b"".join(struct.pack("<II", *entry) for entry in entries)
        table += struct.pack("<IBI", len(entries), 0, TABLE_END)
        table = struct.pack("<II", TABLE_MAGIC, len(table)) + table
        demand(data[at:at + len(table)] == table, "its seek table is not that of its frames")
        demand(not data[at + len(table):].strip(b"\0"), "something follows the seek table")
        self.stream = piped(["zstd", "-dc", "--no-progress"], data[:at + len(table)])
        demand(len(self.stream) == stream, "it decompresses to another length")

    @staticmethod
    def check_zstd(number, body, length):
        demand(body[:4] == b"\x28\xb5\x2f\xfd", f"frame {number} is no Zstandard frame")
        flags = body[4]
        demand(flags & 0b1011 == 0, f"frame {number} has a dictionary or reserved bits")
        single = flags >> 5 & 1
        if not single:
            base = 1 << 10 + (body[5] >> 3)
            demand(base + base // 8 * (body[5] & 7) <= 8 << 20, f"frame {number} has too large a window")
        at, code = 5 + (not single), flags >> 6
        demand(code or single, f"frame {number} has no content size")
        size = int.from_bytes(body[at:at + (1, 2, 4, 8)[code]], "little") + (256 if code == 1 else 0)
        demand(size == length, f"frame {number} has another content size")


# The tar.

def octal(field):
    demand(re.fullmatch(rb"[0-7]{11}\0", field), "a number of a tar header is not 11 octal digits")
    return int(field[:11], 8)


def ustar(block):
    """Name, size, mtime and type of a header block."""
    name = block[:100].rstrip(b"\0")
    counted = sum(block[:148]) + 8 * 32 + sum(block[156:])
    size, mtime, kind = octal(block[124:136]), octal(block[136:148]), block[156:157]
    spelt = (name.ljust(100, b"\0") + b"0000600\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % mtime
             + b"%06o\0 " % counted + kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167))
    demand(block == spelt, f"the tar header of '{name.decode(errors='replace')}' is spelt otherwise")
    demand(kind in b"0x", f"a tar header has type {kind}")
    return name.decode("ascii"), size, mtime, kind


def pax_records(data):
    records, at = {}, 0
    while at < len(data):
        length = re.match(rb"([1-9][0-9]*) ", data[at:at + 24])
        demand(length, "a pax record is malformed")
        end = at + int(length[1])
        record = data[at + length.end():end]
        demand(end <= len(data) and record.endswith(b"\n") and b"=" in record, "a pax record is malformed")
        keyword, value = record[:-1].split(b"=", 1)
        keyword = keyword.decode("utf-8")
        vendor = re.match(r"[A-Z0-9]+\.", keyword) and not keyword.startswith("GNU.sparse.")
        known = keyword in ("path", "size", "comment", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name",
                            "GNU.sparse.realsize")
        demand(known or vendor, f"there is a pax keyword '{keyword}'")
        demand(keyword not in records, f"the pax keyword '{keyword}' is there twice")
        records[keyword] = value
        at = end
    return records


def check_name(name):
    demand(len(name) <= 1024 and re.fullmatch(r"[ -~]+", name), f"'{name}' is no name")
    for part in name.split("/"):
        bad = part in ("", ".", "..") or part.startswith(("GNUSparseFile.", "PaxHeaders."))
        demand(not bad, f"'{name}' is no name")


def number(text):
    demand(re.fullmatch(rb"0|[1-9][0-9]*", text) and int(text) < 1 << 64, f"{text} is no canonical decimal")
    return int(text)


class Member:
    def __init__(self, at, stream):
        self.header_at, pax = at, None
        name, size, self.mtime, kind = ustar(stream[at:at + 512])
        at += 512
        if kind == b"x":
            demand(1 <= size <= MIB, "pax records have an impossible length")
            pax = pax_records(stream[at:at + size])
            demand(not stream[at + size:-(-(at + size) // 512) * 512].strip(b"\0"), "the padding of pax records is not zeros")
            at = -(-(at + size) // 512) * 512
            x_name, x_time = name, self.mtime
            name, size, self.mtime, kind = ustar(stream[at:at + 512])
            at += 512
            demand(kind == b"0", "a pax header is not followed by a member")
            demand(x_name == ("PaxHeaders.0/" + name.rsplit("/", 1)[-1])[:100], f"'{x_name}' is no name for the records of '{name}'")
            demand(x_time == self.mtime, f"the records of '{name}' have a time of their own")
        self.has_records, records = pax is not None, pax or {}
        if "size" in records:
            demand(size == 0, "both headers have a size")
            size = number(records["size"])
        self.realsize = None
        if "path" in records:
            path = records["path"].decode("ascii")
            demand(path[:100] == name and "GNU.sparse.name" not in records, "both headers have a name")
            name = path
        sparse = [key for key in records if key.startswith("GNU.sparse.")]
        if sparse:
            demand(len(sparse) == 4 and records["GNU.sparse.major"] == b"1" and records["GNU.sparse.minor"] == b"0",
                   "it is no sparse member of format 1.0")
            real = records["GNU.sparse.name"].decode("ascii")
            demand(name == "GNUSparseFile.0/" + real, "a sparse member has two names")
            name, self.realsize = real, number(records["GNU.sparse.realsize"])
        check_name(name)
        self.name, self.size, self.content_at = name, size, at
        self.end = at + size
        demand(size < 1 << 63 and self.end <= len(stream), f"the stream ends within '{name}'")
        self.next = -(-self.end // 512) * 512
        demand(not stream[self.end:self.next].strip(b"\0"), f"the padding of '{name}' is not zeros")


def members_of(stream):
    found, at = [], 0
    while stream[at:at + 512] != ZERO_BLOCK:
        demand(len(stream) >= at + 512, "it ends before its end record")
        found.append(Member(at, stream))
        at = found[-1].next
    demand(stream[at:at + 1024] == bytes(1024), "it does not end with two blocks of zeros")
    return found, at + 1024


# What the members say.

def depth(value):
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


def no_twins(pairs):
    found = dict(pairs)
    demand(len(found) == len(pairs), "the head has a field twice")
    return found


def parse_head(data):
    demand(len(data) <= 16 << 20, "the head is too long")
    try:
        head = json.loads(data.decode("utf-8"), object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise Fault(f"the head is no JSON: {error}") from None
    demand(depth(head) <= 128, "the head is nested too deep")
    demand(head["version"] == 1, "the head has another version")
    for owner, field in [(head, "requires")] + [(disk["source"], field) for disk in head["disks"] for field in ("backing", "warnings")]:
        demand(field not in owner or isinstance(owner[field], list), f"the head's '{field}' is no list")
    texts = [head["host"], head["tool"], head["compression"]["method"], *(disk["source"]["format"] for disk in head["disks"])]
    for words in texts:
        fits = 1 <= len(words.encode()) <= 1024 and not re.search("[\0-\x1f\x7f-\x9f]", words)
        demand(fits, "a text of the head is empty, too long, or has control characters")
    demand(not head.get("requires", []), "the head requires what this reader does not know")
    demand(UUID.match(head["archive"]), "the head's archive is no uuid")
    demand(TIME.match(head["created"]), "the head's time is spelt otherwise")
    demand(head["kind"] in ("full", "incremental"), "the head is of no kind")
    demand((head.get("parent") is not None) == (head["kind"] == "incremental"), "the head's parent does not fit its kind")
    subject = head["subject"]
    demand(len(subject) == 1 and set(subject) <= {"domain", "images"}, "the head has no subject")
    names = [disk["target"] for disk in head["disks"]]
    demand(len(set(names)) == len(names) <= 1024, "the head names disks twice, or too many")
    for disk in head["disks"]:
        block, capacity = disk["block_size"], disk["capacity"]
        demand(TARGET.match(disk["target"]), f"'{disk['target']}' is no name for a disk")
        demand(0 <= capacity < 1 << 63, "a disk is too large")
        demand(4096 <= block <= 2 * MIB and block & block - 1 == 0, "a disk has an impossible block size")
        demand(disk["layout"] in ("compact", "full"), "a disk has no layout")
        demand(disk["dense_length"] <= capacity and disk["runs"] <= disk["dense_length"], "a disk has more than fits")
        demand("format" in disk["source"], "a disk has no format")
    return head


def seconds(created):
    import datetime
    time = datetime.datetime.fromisoformat(created.replace("Z", "+00:00"))
    return int(time.timestamp())


def parse_map(text, disk):
    """Runs and used bytes; `text` may go on behind the map."""
    at = 0

    def line():
        nonlocal at
        end = text.find(b"\n", at, at + 21)
        demand(end >= 0, f"the map of {disk['target']} is cut, or has too long a line")
        found, at = number(text[at:end]), end + 1
        return found

    count, end, runs, closed = line(), 0, [], False
    for _ in range(count):
        offset, length = line(), line()
        demand(not closed, f"the map of {disk['target']} goes on behind its end")
        if length == 0:
            closed = offset == disk["capacity"] and end < offset
            demand(closed, f"the map of {disk['target']} has an empty run")
            continue
        demand(offset > end or not runs and offset == 0, f"runs of {disk['target']} touch or overlap")
        end = offset + length
        demand(end <= disk["capacity"], f"a run of {disk['target']} leaves the disk")
        whole = offset % disk["block_size"] == 0 and (end % disk["block_size"] == 0 or end == disk["capacity"])
        demand(whole, f"a run of {disk['target']} is not of whole blocks")
        runs.append((offset, length))
    demand(closed or end == disk["capacity"], f"the map of {disk['target']} has no closing entry")
    return runs, at


def check_table(text, disk, head):
    lines = text.decode("ascii").split("\n")
    demand(lines[0] == "guest_offset,length,kind,host_offset" and lines[-1] == "", "an allocation table is none")
    end = 0
    for row in lines[1:-1]:
        fields = row.split(",")
        demand(len(fields) == 4, f"the row '{row}' is malformed")
        start, length = number(fields[0].encode()), number(fields[1].encode())
        kinds = ("data", "zero", "unallocated") + (("unchanged",) if head["kind"] == "incremental" else ())
        demand(start == end and length > 0 and fields[2] in kinds, f"the row '{row}' does not follow")
        if fields[3]:
            number(fields[3].encode())
        end = start + length
    demand(end == disk["capacity"], f"the allocation table of {disk['target']} ends before the disk")


def check_chain(record):
    named = re.fullmatch(r"[A-Za-z0-9._:@-]{1,256}", record["subject"]) and re.fullmatch(r"[A-Za-z0-9._@-]{1,255}", record["host"])
    demand(named, "the end record names no subject or host")
    previous = record["previous"]
    if previous is not None:
        demand(list(previous) == ["root", "archive", "sequence"], "the end record spells the archive before it otherwise")
        demand(re.fullmatch("[0-9a-f]{64}", previous["root"]), "the archive before it has no root")
        demand(UUID.match(previous["archive"]) and previous["archive"] == previous["archive"].lower(), "the archive before it has no id")
        demand(type(previous["sequence"]) is int and previous["sequence"] > 0, "the archive before it has no number")
    before = previous["sequence"] if previous else 0
    demand(type(record["sequence"]) is int and before < record["sequence"] < 1 << 64, "the end record's sequence does not ascend")


def check_signature(signature, record):
    lines = signature.decode("ascii").split("\n")
    demand(len(signature) == 310 and lines[0] == "-----BEGIN SSH SIGNATURE-----" and lines[-2:] == ["-----END SSH SIGNATURE-----", ""],
           "the signature is spelt otherwise")
    demand([len(line) for line in lines[1:-2]] == [70, 70, 70, 38], "the signature's lines have other lengths")
    blob = base64.b64decode("".join(lines[1:-2]), validate=True)
    demand(base64.b64encode(blob).decode() == "".join(lines[1:-2]), "the signature's Base64 is spelt otherwise")
    with tempfile.NamedTemporaryFile() as file:
        file.write(signature)
        file.flush()
        piped(["ssh-keygen", "-Y", "check-novalidate", "-n", "virtfold-archive", "-s", file.name], record)


class Archive:
    """A sound archive; anything else is a Fault."""

    def __init__(self, data, identity, budget):
        self.encrypted = data.startswith(b"age-encryption.org/v1\n")
        if self.encrypted:
            data = decrypted(data, identity)
        self.frames = Frames(data) if data[:4] == struct.pack("<I", SKIPPABLE) else None
        self.stream = self.frames.stream if self.frames else data
        self.members, end = members_of(self.stream)
        rest = self.stream[end:]
        demand(not rest if self.frames else not rest.strip(b"\0"), "something follows the end of the tar")
        self.check_members()
        self.check_tail(end, budget)

    def content(self, member):
        return self.stream[member.content_at:member.end]

    def check_members(self):
        demand(self.members[0].name == "virtfold.json", "it does not begin with its head")
        self.head = head = parse_head(self.content(self.members[0]))
        incremental = head["kind"] == "incremental"
        wanted = ["virtfold.json"]
        for disk in head["disks"]:
            wanted += [disk["target"] + ".allocation.csv", disk["target"] + ".raw"]
        wanted.append("recovery/virtfold.json")
        for disk in head["disks"]:
            wanted += [f"recovery/{disk['target']}.map"] + [f"recovery/{disk['target']}.allocation.csv"] * incremental
        wanted += [disk["target"] + ".blocks" for disk in head["disks"] if disk.get("digest_block") is not None]
        tail = ["virtfold.digests", "virtfold.end.json"] + ["virtfold.end.json.sig"] * any(m.name == "virtfold.end.json.sig" for m in self.members)
        wanted += tail
        reserved = re.compile(r"(virtfold\.json|virtfold\.digests|virtfold\.end\.json|virtfold\.end\.json\.sig|recovery/virtfold\.json"
                              r"|[A-Za-z0-9_-]{1,32}(\.raw|\.allocation\.csv|\.blocks)|recovery/[A-Za-z0-9_-]{1,32}(\.map|\.allocation\.csv))\Z")
        others = [member.name for member in self.members if not reserved.match(member.name)]
        ordered = [member.name for member in self.members if reserved.match(member.name)]
        demand(ordered == wanted, f"its members are {ordered} and should be {wanted}")
        demand(len(set(others)) == len(others) <= 4096, "a member is there twice, or there are too many")
        demand([m.name for m in self.members[-len(tail):]] == tail, "the tail has other members")
        self.tail = tail
        time = seconds(head["created"])
        demand(all(member.mtime == time for member in self.members), "a member has another time than the head")
        by_name = {member.name: member for member in self.members}
        self.by_name = by_name
        demand(self.content(by_name["recovery/virtfold.json"]) == self.content(self.members[0]), "the copies of the head differ")
        self.runs = {}
        for disk in head["disks"]:
            self.check_disk(disk, by_name, incremental)

    def check_disk(self, disk, by_name, incremental):
        target, member = disk["target"], by_name[disk["target"] + ".raw"]
        table = self.content(by_name[target + ".allocation.csv"])
        check_table(table, disk, self.head)
        if incremental:
            demand(self.content(by_name[f"recovery/{target}.allocation.csv"]) == table, "the copies of a table differ")
        if disk["layout"] == "full":
            demand(member.realsize is None and member.size == disk["capacity"], f"{target} is not whole")
            runs, dense_at = ([(0, disk["capacity"])] if disk["capacity"] else []), member.content_at
        else:
            demand(member.realsize == disk["capacity"], f"{target} has another size than the head says")
            runs, used = parse_map(self.content(member), disk)
            dense_at = member.content_at + -(-used // 512) * 512
            demand(not self.stream[member.content_at + used:dense_at].strip(b"\0"), "the padding of a map is not zeros")
        dense = sum(length for _, length in runs)
        demand(dense_at % 4096 == 0, f"the bytes of {target} begin at {dense_at}")
        demand(dense_at + dense == member.end, f"the map of {target} does not fit its bytes")
        demand((dense, len(runs)) == (disk["dense_length"], disk["runs"]), f"the head counts {target} otherwise")
        copy = self.content(by_name[f"recovery/{target}.map"])
        first = f"{target},{disk['capacity']},{dense_at},{dense}\n".encode()
        demand(copy.startswith(first), f"the copy of the map of {target} begins otherwise")
        again, used = parse_map(copy[len(first):], disk)
        demand(again == runs and len(first) + used == len(copy), f"the copies of the map of {target} differ")
        self.runs[target] = (runs, dense_at)
        if disk.get("digest_block") is not None:
            self.check_blocks(disk, by_name[target + ".blocks"], dense_at, dense)

    def check_blocks(self, disk, member, dense_at, dense):
        block, listed = disk["digest_block"], self.content(member)
        demand(block in [4096 << n for n in range(5)] and block <= disk["block_size"], f"{member.name} is of impossible blocks")
        count = -(-dense // block)
        demand(len(listed) == 32 * count, f"{member.name} has not one digest for each block")
        # Two are enough of a reader this slow: the first, and the last, which may be short.
        for number in {0, count - 1} if count else ():
            piece = self.stream[dense_at + number * block:dense_at + min((number + 1) * block, dense)]
            demand(blake3(piece) == listed[32 * number:32 * number + 32], f"digest {number} of {member.name} is another")

    def check_tail(self, end, budget):
        digests, record = self.by_name["virtfold.digests"], self.by_name["virtfold.end.json"]
        body = digests.header_at
        demand(not any(self.by_name[name].has_records for name in self.tail), "a member of the tail has records")
        self.root = self.check_record(self.content(record), body)
        if self.signer:
            signature = self.content(self.by_name["virtfold.end.json.sig"])
            check_signature(signature, self.content(record))
        chunks = [self.stream[at:min(at + MIB, body)] for at in range(0, body, MIB)]
        listed = self.content(digests)
        demand(len(listed) == 32 * len(chunks), "it has not one digest for each MiB")
        covered = self.content(record).split(b',"root":"')[0]
        demand(blake3(listed + covered).hex() == self.root, "its root is another")
        left = budget * MIB or (len(chunks[-1]) if len(chunks[-1]) <= 64 << 10 else 0)
        for at in reversed(range(len(chunks))):
            if len(chunks[at]) > left:
                break
            left -= len(chunks[at])
            demand(blake3(chunks[at]) == listed[32 * at:32 * at + 32], f"MiB {at} is not what was written")
        if self.frames:
            cuts = [(at, min(MIB, body - at)) for at in range(0, body, MIB)]
            cuts += [(at, min(MIB, end - at)) for at in range(body, end, MIB)]
            demand([(at, length) for at, length, _ in self.frames.starts] == cuts, "its chunks are cut elsewhere")
            named = b"".join(digest for _, _, digest in self.frames.starts[:len(chunks)])
            demand(named == listed, "its frames name other digests than its tail")
            demand(self.frames.ids == {self.head["archive"].replace("-", "").lower()}, "its frames are of another archive")

    def check_record(self, text, body):
        disks = self.head["disks"]
        total = {key: sum(disk[key] for disk in disks) for key in ("capacity", "allocated", "dense_length", "runs")}
        fields = [
            ("version", 1), ("archive", self.head["archive"].lower()), ("time", seconds(self.head["created"])), ("body", body),
            ("chunk_size", MIB), ("chunks", -(-body // MIB)), ("recovery", self.by_name["recovery/virtfold.json"].header_at),
            ("members", len(self.members) - len(self.tail)), ("disks", len(disks)), ("capacity", total["capacity"]),
            ("allocated", total["allocated"]), ("dense", total["dense_length"]), ("runs", total["runs"]),
        ]
        root = re.search(rb'"root":"([0-9a-f]{64})"\}\n\Z', text)
        demand(root and len(text) <= 4096, "the end record has no root")
        self.signer = None
        if len(self.tail) == 3:
            chain = json.loads(text)
            check_chain(chain)
            self.signer = chain["host"]
            fields += [(key, chain[key]) for key in ("subject", "host", "sequence", "previous")]
        spelt = json.dumps(dict(fields + [("root", root[1].decode())]), separators=(",", ":")) + "\n"
        demand(text == spelt.encode(), "the end record is not as the archive is")
        return root[1].decode()

    def extract(self, folder):
        for disk in self.head["disks"]:
            runs, at = self.runs[disk["target"]]
            with open(os.path.join(folder, disk["target"] + ".raw"), "wb") as out:
                out.truncate(disk["capacity"])
                for offset, length in runs:
                    out.seek(offset)
                    out.write(self.stream[at:at + length])
                    at += length


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("archive")
    options.add_argument("--identity")
    options.add_argument("--digests", type=int, default=0, metavar="MIB")
    options.add_argument("--extract", metavar="DIR")
    options = options.parse_args()
    with open(options.archive, "rb") as file:
        data = file.read()
    try:
        archive = Archive(data, options.identity, options.digests)
    except (Fault, UnicodeDecodeError, KeyError, TypeError, AttributeError, IndexError, struct.error) as fault:
        sys.exit(f"{options.archive}: {fault if isinstance(fault, Fault) else repr(fault)}")
    if options.extract:
        archive.extract(options.extract)
    how = ("encrypted, " if archive.encrypted else "") + ("framed" if archive.frames else "plain")
    signed = f", signed by {archive.signer}" if archive.signer else ""
    print(f"sound, {how}, {len(archive.members)} members, root {archive.root}{signed}")


main()
