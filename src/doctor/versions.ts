/** Versions of what a run is made of, against those that Baton knows. */
import {
  FIRST_NODE,
  FIRST_PYTHON,
  isOlder,
  LAST_PYTHON,
  SUPPORTED_PYTHON,
  type Version,
  versionText,
} from "../versions.js";
import type { Facts, PythonFacts, SoftwareFacts } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";

const { ok, warning, problem, unknown } = findingsOf("versions");

/** First and last (major, minor) that Baton was written for, as python/pyproject.toml and its vLLM adapter have them. */
interface Known {
  readonly name: string;
  readonly first: Version;
  readonly last: Version;
  readonly words: string;
  /** What lacks it. */
  readonly use: string;
}

const ANY = 9_999;
export const KNOWN = {
  torch: { name: "torch", first: [2, 11], last: [2, 11], words: "2.11", use: "everything" },
  deepspeed: { name: "deepspeed", first: [0, 19], last: [0, 19], words: "0.19", use: "training with DeepSpeed" },
  vllm: { name: "vllm", first: [0, 20], last: [0, 26], words: "0.20 to 0.26", use: "engines of kind vllm" },
  transformers: { name: "transformers", first: [5, 0], last: [5, ANY], words: "5", use: "the examples" },
  accelerate: { name: "accelerate", first: [1, 10], last: [1, ANY], words: "1.10 or newer", use: "accelerate launch" },
} as const satisfies Record<string, Known>;

/** Without these neither ranks nor engines start. */
export const NEEDED = ["torch", "numpy", "msgspec"] as const;
/** What training depends on. The versions of all of these are the same on nodes that train together, where they are installed. */
export const PACKAGES = [
  ...[...NEEDED, "deepspeed", "vllm", "transformers", "accelerate", "peft", "ninja"],
  ...["trl", "datasets", "math-verify"],
] as const;

export function judgeVersions(facts: Pick<Facts, "gpus" | "python" | "software">): Finding[] {
  return [...judgeSoftware(facts.software), ...judgePython(facts)];
}

function judgeSoftware({ node, baton, addon, glibc }: SoftwareFacts): Finding[] {
  const findings = [ok("NODE_VERSION", `Node.js ${node}`, glibc === null ? "" : `glibc ${glibc}`)];
  if (isOlder(parse(node) ?? [0, 0], FIRST_NODE)) {
    findings[0] = problem("NODE_VERSION", {
      message: "Node.js is too old.",
      expected: `${versionText(FIRST_NODE)} or newer`,
      found: node,
      action: `Install Node.js ${versionText(FIRST_NODE)} or newer.`,
    });
  }
  if (typeof addon !== "string") {
    findings.push(problem(addon.code, { ...addon }));
  } else if (addon !== baton) {
    findings.push(
      problem("ADDON_VERSION", {
        message: "The native addon is of another version than the rest of Baton.",
        expected: baton,
        found: addon,
        action: "Run `npm run build` in a checkout, or install gpu-baton again.",
      }),
    );
  } else {
    findings.push(ok("ADDON_VERSION", `Baton ${baton}, its addon too`));
  }
  return findings;
}

function judgePython({ gpus, python }: Pick<Facts, "gpus" | "python">): Finding[] {
  if (python === null) return [unknown("PYTHON_MISSING", "Python could not be asked.", "no answer in time")];
  if (python.path === null || python.version === null) {
    return [
      problem("PYTHON_MISSING", {
        message: "No Python was found.",
        expected: `${SUPPORTED_PYTHON} (BATON_PYTHON, VIRTUAL_ENV, .venv, or python3 on PATH)`,
        found: python.asked.length === 0 ? "none" : `none that runs: ${python.asked.join(", ")}`,
        action: "Install Python, then run `baton setup`; or name one in BATON_PYTHON.",
      }),
    ];
  }
  return [interpreter(python.path, python.version), ...needed(python), ...packages(python, gpus)];
}

function interpreter(path: string, version: Version): Finding {
  const texts = {
    expected: SUPPORTED_PYTHON,
    found: `${path} is Python ${versionText(version)}`,
    action: "Name another in BATON_PYTHON, or run `baton setup` with one on PATH.",
  };
  if (isOlder(version, FIRST_PYTHON)) return problem("PYTHON_VERSION", { message: "Python is too old.", ...texts });
  // A run refuses it too.
  if (isOlder(LAST_PYTHON, version)) return problem("PYTHON_VERSION", { message: "Python is too new.", ...texts });
  return ok("PYTHON_VERSION", `Python ${versionText(version)}`, path);
}

function needed({ path, packages: there }: PythonFacts): Finding[] {
  const missing = NEEDED.filter((name) => there[name] === undefined);
  if (missing.length === 0) return [];
  return [
    problem("PYTHON_PACKAGE_MISSING", {
      message: `${path} lacks ${missing.join(", ")}.`,
      expected: NEEDED.join(", "),
      found: `without ${missing.join(", ")}`,
      action: "Run `baton setup`, or name a Python that has them in BATON_PYTHON.",
    }),
  ];
}

function packages(python: PythonFacts, gpus: Facts["gpus"]): Finding[] {
  const { packages: there } = python;
  const findings = Object.values(KNOWN).flatMap((known) => {
    const version = there[known.name];
    return version === undefined ? missingPackage(known, gpus) : [judgeVersion(known, version, gpus)];
  });
  findings.push(...torchBuild(python, gpus));
  if (there.peft !== undefined) findings.push(ok("PEFT_VERSION", `peft ${there.peft}`));
  return findings;
}

function missingPackage(known: Known, gpus: Facts["gpus"]): Finding[] {
  // What nobody can do without is a finding of its own; vLLM needs a GPU.
  if (known.name === "torch" || (known.name === "vllm" && gpus === "stand-in")) return [];
  return [
    warning(`${known.name.toUpperCase()}_MISSING`, {
      message: `${known.name} is not installed: no ${known.use}.`,
      expected: `${known.name} ${known.words}`,
      found: "none",
      action: known.name === "vllm" ? "pip install vllm==0.26.0" : "Run `baton setup`.",
    }),
  ];
}

function judgeVersion(known: Known, text: string, gpus: Facts["gpus"]): Finding {
  const code = `${known.name.toUpperCase()}_VERSION`;
  const version = parse(text);
  if (version === null) return unknown(code, `The version of ${known.name} is not known.`, text);
  if (!isOlder(version, known.first) && !isOlder(known.last, version)) return ok(code, `${known.name} ${text}`);
  const refused = known.name === "vllm" && gpus === "real";
  return (refused ? problem : warning)(code, {
    message: refused
      ? `Baton does not know this version of vLLM: ${text}.`
      : `Baton was not tried with this version of ${known.name}.`,
    expected: `${known.name} ${known.words}`,
    found: `${known.name} ${text}`,
    action: known.name === "vllm" ? "pip install vllm==0.26.0" : `Install ${known.name} ${known.words}, or try it.`,
  });
}

function torchBuild({ packages: there, torchIsCudaBuild, torchCuda }: PythonFacts, gpus: Facts["gpus"]): Finding[] {
  if (there.torch === undefined || gpus === "stand-in") return [];
  const version = parse(there.torch);
  const findings: Finding[] = [];
  if (torchIsCudaBuild === false) {
    findings.push(
      problem("UNSUPPORTED_DEVICE", {
        message: "There is a CUDA driver, but torch cannot use it.",
        expected: "a torch that was built for CUDA",
        found: `torch ${there.torch}`,
        action: "Install a CUDA build of torch: pip install torch==2.11.0",
      }),
    );
  } else if (torchIsCudaBuild === true) {
    findings.push(ok("UNSUPPORTED_DEVICE", `torch was built for CUDA ${torchCuda}`));
  }
  if (there.vllm !== undefined && version !== null && (version[0] !== 2 || version[1] !== 11)) {
    findings.push(
      problem("TORCH_AND_VLLM", {
        message: "vLLM was built for another torch.",
        expected: "torch 2.11, for vLLM 0.20 to 0.26",
        found: `torch ${there.torch}, vllm ${there.vllm}`,
        action: "pip install torch==2.11.0 vllm==0.26.0",
      }),
    );
  }
  return findings;
}

function parse(text: string): Version | null {
  const match = /^(\d+)\.(\d+)/.exec(text);
  return match === null ? null : [Number(match[1]), Number(match[2])];
}
