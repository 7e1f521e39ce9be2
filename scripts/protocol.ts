/** `npm run protocol`: writes the Python messages from src/protocol/messages.ts. `--check` only compares. */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { PROTOCOL_VERSION } from "../src/protocol/messages.js";
import { pythonMessages } from "../src/protocol/python.js";

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));
const target = path("../python/src/baton/protocol/messages.py");
const text = pythonMessages(readFileSync(path("../src/protocol/messages.ts"), "utf8"), PROTOCOL_VERSION);

if (!process.argv.includes("--check")) {
  writeFileSync(target, text);
} else if (readFileSync(target, "utf8") !== text) {
  console.error("python/src/baton/protocol/messages.py is stale: run `npm run protocol`");
  process.exitCode = 1;
}
