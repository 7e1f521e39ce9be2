/** Compilers: of Baton's PyTorch allocator for the CPU, and of DeepSpeed's FusedAdam for CUDA. */
import type { Facts } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";

const { ok, warning, problem } = findingsOf("compilers");

export function judgeCompilers(facts: Pick<Facts, "gpus" | "tools" | "python">): Finding[] {
  return [compiler(facts), ...(facts.gpus === "real" ? [toolkit(facts)] : []), ...ninja(facts)];
}

function compiler({ gpus, tools }: Pick<Facts, "gpus" | "tools">): Finding {
  const what =
    gpus === "real"
      ? "DeepSpeed cannot build FusedAdam"
      : "the PyTorch allocator, which is compiled once for each torch, cannot be built";
  // On real GPUs an optimizer of torch needs no compiler.
  const say = gpus === "real" ? warning : problem;
  const action = "Install g++ (Debian, Ubuntu: apt install g++), or name a compiler in CXX.";
  const expected = `a C++20 compiler: ${tools.compilerNames.join(", ")}`;
  if (tools.compiler === null) {
    return say("NO_COMPILER", {
      message: `There is no C++ compiler: ${what}.`,
      expected,
      found: "none of them on PATH",
      action,
    });
  }
  const { path, version, cxx20 } = tools.compiler;
  if (!cxx20) {
    return say("NO_COMPILER", {
      message: `The C++ compiler cannot compile C++20: ${what}.`,
      expected,
      found: `${path}: ${version}`,
      action,
    });
  }
  return ok("NO_COMPILER", "A C++ compiler works.", `${path}: ${version}`);
}

function toolkit({ tools, python }: Pick<Facts, "tools" | "python">): Finding {
  const instead = "or use torch's AdamW, which needs no compiler";
  const cuda = python?.torchCuda ?? null;
  if (tools.cudaHome === null || tools.nvccRelease === null) {
    return warning("NVCC", {
      message: "CUDA's compiler is missing: DeepSpeed cannot build FusedAdam.",
      expected: `nvcc${cuda === null ? "" : ` ${cuda}`}, with CUDA_HOME set to its toolkit`,
      found: tools.cudaHome === null ? "neither CUDA_HOME nor nvcc on PATH" : `no nvcc that runs in ${tools.cudaHome}`,
      action: `Install CUDA's toolkit and set CUDA_HOME, ${instead}.`,
    });
  }
  const found = `nvcc ${tools.nvccRelease} in ${tools.cudaHome}`;
  if (cuda !== null && cuda !== tools.nvccRelease && !sameMajorBefore13(cuda, tools.nvccRelease)) {
    return warning("NVCC", {
      message: "CUDA's compiler is of another version than torch: DeepSpeed refuses to build FusedAdam.",
      expected: `nvcc ${cuda}`,
      found,
      action: `Install that version of the toolkit and set CUDA_HOME to it, ${instead}.`,
    });
  }
  return ok("NVCC", "CUDA's compiler suits torch.", found);
}

/** DeepSpeed lets minor versions of CUDA 11 and 12 differ. */
function sameMajorBefore13(a: string, b: string): boolean {
  const [major] = a.split(".");
  return major === b.split(".")[0] && Number(major) < 13;
}

function ninja({ python }: Pick<Facts, "python">): Finding[] {
  if (python === null || python.path === null || python.packages.deepspeed === undefined) return [];
  if (python.packages.ninja !== undefined) return [ok("NINJA", `ninja ${python.packages.ninja}`)];
  return [
    warning("NINJA", {
      message: "The package ninja is missing: DeepSpeed cannot compile its extensions.",
      expected: "ninja, beside DeepSpeed",
      found: "none",
      action: `${python.path} -m pip install ninja`,
    }),
  ];
}
