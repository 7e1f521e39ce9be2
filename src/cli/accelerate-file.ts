/** What a configuration file of `accelerate launch` asks for and accelerate drops without a word. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { basename, join, resolve } from "node:path";
import { parse } from "yaml";
import { BatonError } from "../errors.js";

/** ZeRO++, MiCS and ZenFlow: keys of DeepSpeed's own configuration, which accelerate's `deepspeed_config:` has not. */
const DROPPED = /^(zero_hpz_|zero_quantized_|mics_|zenflow$)/;
const OFF = new Set<unknown>([false, null, undefined]);
const OPTION = /^--config[_-]file(?:=(.*))?$/;

/**
 * Plain ZeRO would train, where something else was asked for. A file that cannot be read is left to accelerate, which
 * says so better.
 *
 * @param folder where the command runs
 * @throws BatonError UNSUPPORTED_DEEPSPEED
 */
export function checkAccelerateFile(command: readonly string[], folder: string): void {
  const file = configFile(command);
  if (file === null) return;
  const dropped = Object.entries(deepspeedConfig(resolve(folder, file))).filter(
    ([name, value]) => DROPPED.test(name) && !OFF.has(value) && !(name === "zero_hpz_partition_size" && value === 1),
  );
  if (dropped.length === 0) return;
  throw new BatonError({
    code: "UNSUPPORTED_DEEPSPEED",
    message: `${file} asks for ZeRO++, MiCS or ZenFlow where accelerate does not read it: plain ZeRO would train.`,
    expected: "plain ZeRO, over all ranks, which is what Baton hands over",
    found: dropped.map(([name, value]) => `deepspeed_config.${name}: ${JSON.stringify(value)}`).join(", "),
    action: `Remove ${dropped.map(([name]) => name).join(", ")} from ${file}.`,
  });
}

/**
 * The file that `accelerate launch` reads: the one that it is given, else the one that `accelerate config` wrote; null:
 * it is no such command.
 */
function configFile(command: readonly string[]): string | null {
  // `bash -c 'accelerate launch …'`: the words of the shell.
  const words = command.flatMap((word) => (/\s/.test(word) ? word.split(/\s+/) : [word]));
  const launch = words.findIndex((word) => basename(word) === "accelerate" || word === "accelerate.commands.launch");
  if (launch === -1) return null;
  for (const [place, word] of words.entries()) {
    // What follows the script is the script's.
    if (place > launch && word.endsWith(".py")) break;
    const found = place > launch ? OPTION.exec(word) : null;
    if (found) return found[1] ?? words[place + 1] ?? null;
  }
  return defaultFile();
}

/** As accelerate has it: accelerate/commands/config/config_args.py. */
function defaultFile(): string {
  const { HF_HOME, XDG_CACHE_HOME } = process.env;
  const cache = HF_HOME ?? join(XDG_CACHE_HOME ?? join(homedir(), ".cache"), "huggingface");
  return join(cache, "accelerate", "default_config.yaml");
}

function deepspeedConfig(path: string): Record<string, unknown> {
  try {
    const section: unknown = parse(readFileSync(path, "utf8"))?.deepspeed_config;
    return typeof section === "object" && section !== null ? (section as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
