/** The Python of the checkout, with the tools of development. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { output, root, run, SetupError, which } from "./tools.mjs";

const venv = join(root, ".venv");
const python = join(venv, "bin", "python");
const requirements = join(root, "scripts", "requirements-dev.txt");

/** Import names of what requirements-dev.txt installs. */
const DEV_MODULES = ["pytest", "xdist", "hypothesis", "ruff", "clang_format", "trl", "datasets"];

/** Import names that an interpreter does not find; null when it does not run. */
const lacks = (modules, interpreter = python) =>
  output(interpreter, [
    "-c",
    "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])",
    ...modules,
  ]);

const TRAINING_MODULES = ["torch", "deepspeed", "transformers", "accelerate"];

/** Makes .venv (`baton setup`) and puts the tools of development into it, whatever of that is missing. */
export function developmentPython() {
  if (lacks(TRAINING_MODULES) !== "") {
    run(process.execPath, [join(root, "dist", "cli", "main.js"), "setup"]);
    if (!existsSync(python)) shareWithUsersPython();
  }
  const missing = lacks(DEV_MODULES);
  if (missing === null) throw new SetupError(`${python} does not run; remove ${venv} and run \`npx baton setup\``);
  if (missing !== "") {
    const uv = which("uv");
    if (uv !== null) run(uv, ["pip", "install", "--quiet", "--python", python, "-r", requirements]);
    else if (lacks(["uv"]) === "")
      run(python, ["-m", "uv", "pip", "install", "--quiet", "--python", python, "-r", requirements]);
    else run(python, ["-m", "pip", "install", "--quiet", "-r", requirements]);
  }
  return python;
}

/** The user's Python has all that Baton needs, so `baton setup` made none: the tools still get a .venv of their own. */
function shareWithUsersPython() {
  const candidates = [process.env.BATON_PYTHON, process.env.VIRTUAL_ENV && join(process.env.VIRTUAL_ENV, "bin/python")];
  const base = [...candidates, which("python3")].find((each) => each && lacks(TRAINING_MODULES, each) === "");
  if (!base) throw new SetupError("no Python with torch and deepspeed; run: npx baton setup");
  run(base, ["-m", "venv", "--system-site-packages", venv]);
}

/** A tool of .venv, else of PATH. */
export function pythonTool(name) {
  const own = join(venv, "bin", name);
  const found = existsSync(own) ? own : which(name);
  if (found === null) {
    throw new SetupError(
      `${name} is not installed; run: .venv/bin/python -m pip install -r scripts/requirements-dev.txt`,
    );
  }
  return found;
}
