#!/usr/bin/env python3
"""Compiles HLSL compute shaders with Slang: a second front end for the HLSL that naga writes for DX12.

tools/check-hlsl.py FILE:ENTRY...     or --probe, which only checks whether Slang is installed

Each file is parsed, checked and compiled to SPIR-V, without a GPU or a device. Files over 64 KiB are only parsed and
checked, because the unrolled matrix kernels would take Slang minutes. Needs Slang's library: the package `slangpy` in
the Python that runs this script (pip install slangpy), or the path of libslang in SLANG_LIBRARY.
Prints the diagnostics of the files that fail, then the library's name and the counts. Exit status: 0 all compile, 1
some do not, 2 wrong usage, 3 no Slang.
"""
import ctypes
import glob
import importlib.util
import os
import sys

SOURCE_HLSL, TARGET_SPIRV, STAGE_COMPUTE = 2, 6, 6  # slang.h: SlangSourceLanguage, SlangCompileTarget, SlangStage
NO_CODE = 1 << 4  # slang.h: SLANG_COMPILE_FLAG_NO_CODEGEN
LARGE = 64 << 10  # bytes


def library():
    """Returns the path of Slang's library, or None."""
    if os.environ.get("SLANG_LIBRARY"):
        return os.environ["SLANG_LIBRARY"]
    spec = importlib.util.find_spec("slangpy")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        for pattern in ("libslang-compiler*.so*", "libslang-compiler*.dylib", "slang-compiler*.dll", "libslang.*", "slang.dll"):
            for path in sorted(glob.glob(os.path.join(folder, pattern))):
                return path
    return None


def load(path):
    """Loads Slang's C interface, and sets the types of the functions used here."""
    slang = ctypes.CDLL(path)
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("spCreateSession", pointer, [text]),
        ("spDestroySession", None, [pointer]),
        ("spFindProfile", ctypes.c_uint, [pointer, text]),
        ("spCreateCompileRequest", pointer, [pointer]),
        ("spDestroyCompileRequest", None, [pointer]),
        ("spSetCodeGenTarget", None, [pointer, number]),
        ("spSetTargetProfile", None, [pointer, number, ctypes.c_uint]),
        ("spSetCompileFlags", None, [pointer, ctypes.c_uint]),
        ("spSetOptimizationLevel", None, [pointer, number]),
        ("spAddTranslationUnit", number, [pointer, number, text]),
        ("spAddTranslationUnitSourceString", None, [pointer, number, text, text]),
        ("spAddEntryPoint", number, [pointer, number, text, number]),
        ("spCompile", number, [pointer]),
        ("spGetDiagnosticOutput", text, [pointer]),
        ("spGetEntryPointCode", pointer, [pointer, number, ctypes.POINTER(ctypes.c_size_t)]),
    ):
        function = getattr(slang, name)
        function.restype, function.argtypes = result, arguments
    return slang


def check(slang, session, profile, path, entry):
    """Returns None if the file compiles, else the diagnostics."""
    with open(path, "rb") as file:
        source = file.read()
    request = slang.spCreateCompileRequest(session)
    try:
        slang.spSetCodeGenTarget(request, TARGET_SPIRV)
        slang.spSetTargetProfile(request, 0, profile)
        slang.spSetOptimizationLevel(request, 0)
        if len(source) > LARGE:
            slang.spSetCompileFlags(request, NO_CODE)
        unit = slang.spAddTranslationUnit(request, SOURCE_HLSL, b"kernel")
        slang.spAddTranslationUnitSourceString(request, unit, os.path.basename(path).encode(), source)
        index = slang.spAddEntryPoint(request, unit, entry.encode(), STAGE_COMPUTE)
        if slang.spCompile(request) >= 0:
            size = ctypes.c_size_t(0)
            # code is more than SPIR-V's header of five words (20 bytes)
            if len(source) > LARGE or (slang.spGetEntryPointCode(request, index, ctypes.byref(size)) and size.value > 20):
                return None
        return (slang.spGetDiagnosticOutput(request) or b"").decode(errors="replace") or "no diagnostics and no code"
    finally:
        slang.spDestroyCompileRequest(request)


def main(arguments):
    probe = arguments == ["--probe"]
    if not arguments or not (probe or all(":" in a for a in arguments)):
        print("check-hlsl: expected FILE:ENTRY..., got " + (" ".join(arguments) or "nothing"), file=sys.stderr)
        return 2
    path = library()
    if path is None:
        print("check-hlsl: no Slang found, expected the package slangpy or SLANG_LIBRARY", file=sys.stderr)
        return 3
    slang = load(path)
    if probe:
        print(os.path.basename(path))
        return 0
    session = slang.spCreateSession(None)
    profile = slang.spFindProfile(session, b"sm_6_2")
    failed = 0
    for argument in arguments:
        file, _, entry = argument.rpartition(":")
        diagnostics = check(slang, session, profile, file, entry)
        if diagnostics is not None:
            failed += 1
            print(f"{file}: entry {entry} does not compile:\n{diagnostics}")
    slang.spDestroySession(session)
    print(f"{os.path.basename(path)}: {len(arguments) - failed} of {len(arguments)} compile")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
