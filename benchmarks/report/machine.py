"""What a file says of its machine, and how old it is."""

from benchmarks.common.results import sources
from benchmarks.common.tables import Row, unique
from benchmarks.report.texts import text

# The day on which the range finder was written anew, for files that don't say what code is theirs.
REBUILT = "2026-11-29"


def in_words(count: int, one_of: str) -> str:
    return f"{count} {one_of}" + ("" if count == 1 else "s")


def machine(content: Row) -> list[str]:
    where, commit = content["machine"], str(content["commit"])
    settings = content.get("settings", {})
    names = [key for key, value in settings.items() if key.isupper() and value]
    told = text(
        "Machine",
        device=", with ".join(unique([where["device"], where["cpu"]])),
        cores=in_words(where["cores"], "core"),
        settings="".join(f", `{name}={settings[name]}`" for name in names),
        versions=", ".join(f"{key} {value}" for key, value in content["versions"].items() if value),
        date=content["date"][:10],
        commit=commit[:12],
        changes=" with changes" if commit.endswith("dirty") else "",
        file=content["file"],
    )
    lines = [told, ""]
    source, of = content.get("source"), "core" if content["kind"] == "cpu" else "optim"
    if content["kind"] != "gpu" and source is not None and source[of] != sources()[of]:
        lines += ["**Older than the code**: it has changed since the measurement.", ""]
    if content["kind"] in ("cpu", "llama") and source is None and content["date"] < REBUILT:
        lines += [text("Rewritten"), ""]
    if content.get("quick"):
        return ["**A quick trial on small matrices: no figure here means anything.**", "", *lines]
    return lines
