"""The rules for plugins, and what it means to break one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for plugins.

    Attributes:
        code: the name of the rule, which does not change.
        expected: the rule itself, as the end of a sentence.
        remedy: what the author of a plugin does if the plugin breaks the rule.
    """

    code: str
    expected: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a plugin breaks.

    Attributes:
        rule: the rule.
        subject: the part of the plugin that breaks the rule, such as ``protocol redis/tcp``.
        found: what the part is or does, in one line.
    """

    rule: Rule
    subject: str
    found: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding ready for JSON."""
        return {
            "code": self.rule.code,
            "subject": self.subject,
            "found": self.found,
            "expected": self.rule.expected,
            "remedy": self.rule.remedy,
        }


SECTIONS: Final[dict[str, tuple[Rule, ...]]] = {
    "distribution": (
        Rule(
            "entry-point",
            "an entry point in the group refractium names a module of the distribution, or an object in it",
            'add the table [project.entry-points.refractium] with the line ID = "MODULE" to pyproject.toml',
        ),
        Rule(
            "id",
            "the id of a plugin has up to 64 lower-case letters, digits, _ and -, and starts with a letter",
            "rename the entry point",
        ),
        Rule(
            "id-name",
            "an object of the plugin has the id of the plugin as its name",
            "give the entry point the name of the object, or the object the name of the entry point",
        ),
        Rule(
            "distribution-name",
            "the name of the distribution is the prefix of the plugin's kind and the id of the plugin",
            "rename the distribution",
        ),
        Rule("summary", "the distribution and each of its objects have a summary", "write one line about it"),
        Rule(
            "core-missing",
            "the distribution requires refractium-core",
            'add "refractium-core>=X.Y,<X+1" to the dependencies',
        ),
        Rule(
            "core-lower-bound",
            "the requirement of refractium-core has a lower bound",
            "require the oldest version with which your tests pass: refractium-core>=X.Y",
        ),
        Rule(
            "core-upper-bound",
            "the requirement of refractium-core has an upper bound",
            "exclude the next major version, which may change the contract: <X+1",
        ),
        Rule(
            "core-version",
            "the requirement of refractium-core admits the version that runs this check",
            "change the bounds, or check the plugin with a version of refractium-core that they admit",
        ),
        Rule(
            "python-range",
            "the distribution states the oldest Python version that it supports",
            'add requires-python = ">=3.11" to pyproject.toml',
        ),
        Rule(
            "python-version",
            "requires-python admits the Python version that runs this check",
            "change requires-python, or check the plugin with a Python version that it admits",
        ),
        Rule(
            "dependency-missing",
            "the dependencies of the distribution are installed; else its code is not checked",
            "install the dependencies",
        ),
        Rule(
            "undeclared-import",
            "each imported package belongs to the distribution, to its requirements or to Python itself",
            "correct the name, or add the distribution of the package to the dependencies",
        ),
        Rule(
            "private-import",
            "of Refractium, a plugin imports only refractium.contract, refractium.kit and refractium.testing",
            "import the name from a public module; other modules change without notice",
        ),
    ),
    "import": (
        Rule(
            "import-fails",
            "the module can be imported",
            "run python -c 'import MODULE' to see the traceback",
        ),
        Rule(
            "import-output",
            "the import prints nothing",
            "remove the print, or use logging when the plugin is at work",
        ),
        Rule(
            "import-threads",
            "the import starts no thread",
            "start the thread in PacketHook.start, or when the first call needs it",
        ),
        Rule(
            "import-effects",
            "the import changes nothing outside of the plugin, and uses neither network nor programs",
            "move the statement into the function that needs its result",
        ),
        Rule(
            "import-slow",
            "the import takes at most a quarter of the time that the import of Refractium itself takes",
            "import the slow modules inside the functions that need them",
        ),
        Rule(
            "api-version",
            "refractium_api_version is the version of the contract of the core, or is absent",
            "adapt the plugin to the contract of the core, and change the number",
        ),
    ),
    "objects": (
        Rule(
            "hookspec",
            "each @hookimpl function has the name of a hookspec, takes no arguments, and returns a list",
            "compare the function with the table of functions in the reference of plugins",
        ),
        Rule(
            "no-objects",
            "the plugin provides at least one object",
            "write a @hookimpl function that returns the objects, such as refractium_protocols()",
        ),
        Rule(
            "attributes",
            "each object has the type and the attributes that the contract requires",
            "correct the attribute",
        ),
        Rule(
            "name-twice",
            "no two objects of a kind have the same name; for protocols: and the same transport",
            "rename one of the two objects",
        ),
        Rule(
            "name-built-in",
            "no object has the name of a built-in object",
            "rename the object",
        ),
        Rule(
            "name-taken",
            "no other installed plugin has the same id, or an object of the same kind and name",
            "rename the object, or uninstall the other plugin",
        ),
    ),
    "protocol": (
        Rule(
            "no-samples",
            "the folder samples in the package of a protocol contains first messages of real clients",
            "write the bytes of one first message to samples/NAME.bin beside __init__.py",
        ),
        Rule(
            "sample-unknown",
            "a protocol of the plugin matches each sample",
            "correct the protocol, or remove a sample that is not a whole first message",
        ),
        Rule(
            "not-total",
            "identify, and the function of a DeferredMatch, raise no exception for any bytes",
            "check the length of the bytes before you read a field",
        ),
        Rule(
            "not-stateless",
            "identify gives the same answer whenever it gets the same bytes",
            "keep no state between two calls: compute the answer from the bytes alone",
        ),
        Rule(
            "not-bounded",
            "identify decides once it has max_bytes bytes",
            "answer NO instead of NEED_MORE at max_bytes, or raise max_bytes",
        ),
        Rule(
            "not-monotone",
            "further bytes change neither a match nor a NO, nor a value in the metadata",
            "answer NEED_MORE until no further byte can change the answer; for metadata that can still come, "
            "name the key in ProtocolMatch.pending",
        ),
        Rule(
            "not-patient",
            "for fewer bytes than NeedMore.at, the answer is NEED_MORE or NeedMore",
            "lower the number of bytes in NeedMore",
        ),
        Rule(
            "answer-type",
            "identify returns a ProtocolMatch, NO, NEED_MORE or NeedMore",
            "return NO in place of None, False or an empty answer",
        ),
        Rule(
            "metadata-key",
            "the metadata of a match has only the keys that metadata_keys declares",
            "add the key to metadata_keys",
        ),
        Rule(
            "metadata-type",
            "the value of each metadata key has the type that metadata_keys declares",
            "convert the value, for example by bytes.decode('ascii', 'replace')",
        ),
        Rule(
            "prefix-undeclared",
            "identify answers NO to bytes that start with none of the prefixes",
            "add the missing prefix, or answer NO",
        ),
        Rule(
            "prefix-rejected",
            "no prefix of a TCP protocol gets the answer NO",
            "remove the prefix, or correct identify",
        ),
        Rule(
            "identify-effects",
            "identify uses neither files, nor network, nor programs, nor threads",
            "compute the answer from the bytes alone",
        ),
        Rule(
            "identify-slow",
            "identify takes at most 1 ms for a whole buffer of max_bytes bytes",
            "search only the part of the bytes that decides, and read metadata in a DeferredMatch",
        ),
        Rule(
            "settings",
            "with_settings returns a protocol of the same name and transport, and keeps the contract",
            "return a new object of the same class",
        ),
        Rule(
            "conflict",
            "no weaker or equally strong protocol matches the first messages of another protocol",
            "make the test of the bytes stricter, or lower the strength of the protocol",
        ),
    ),
    "hook": (
        Rule(
            "hook-fails",
            "a packet hook with its default settings processes each session without an exception",
            "correct the method; also expect empty datagrams and sessions without packets",
        ),
        Rule(
            "hook-process",
            "the module of a hook with isolation process contains the class by its name",
            "define the class at the top level of the module",
        ),
        Rule(
            "settings-problems",
            "problems returns pairs of a key and a message, and raises no exception",
            'write: yield "key", "message"',
        ),
    ),
    "balancer": (
        Rule(
            "balancer-fails",
            "order raises no exception for any number of backends",
            "correct the method; expect a single backend, and equal weights and counts",
        ),
        Rule(
            "balancer-order",
            "order returns at least one of the given backends, each at most once, and nothing else",
            "return a new list of the backends in their order",
        ),
        Rule(
            "balancer-slow",
            "order takes at most 1 ms for 100 backends",
            "compute in advance, and recompute only if the sequence of backends is another object",
        ),
    ),
    "health check": (
        Rule(
            "health-answer",
            "check returns None or a reason, raises OSError or EOFError, and fails if nothing listens",
            "let OSError and EOFError pass, and return a text for any other failure",
        ),
        Rule(
            "health-blocks",
            "check waits only with await, and ends when it is cancelled",
            "run blocking functions by asyncio.to_thread, and catch no CancelledError",
        ),
        Rule(
            "health-leaks",
            "a check that ends or is cancelled has closed its sockets and files",
            "close the writer in a finally block",
        ),
    ),
    "command": (
        Rule(
            "command-help",
            "the command and its subcommands print their help with --help",
            "correct the declaration of the arguments and options",
        ),
    ),
    "all": (
        Rule(
            "time-limit",
            "no call of the plugin takes longer than the time limit; else the later checks do not run",
            "make the call end soon, or remove the endless loop",
        ),
        Rule(
            "check-fails",
            "the objects of the plugin behave like ordinary objects; else the later checks do not run",
            "correct the attribute that raises; if no attribute raises, report a fault of Refractium",
        ),
        Rule(
            "process-ends",
            "no call of the plugin ends the process; else the later checks do not run",
            "raise an exception in place of os._exit; if C code crashes, report the fault to its authors",
        ),
    ),
}
"""The rules, by the part of a plugin that they concern."""

RULES: Final = {rule.code: rule for rules in SECTIONS.values() for rule in rules}
"""Each rule, by its code."""
