"""Time to import the library, in a fresh interpreter."""


def timeraw_import_lowrank():
    return "import lowrank"
