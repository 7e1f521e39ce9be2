#!/usr/bin/env node
/** The command `baton`. */
import { Command } from "commander";
import { BatonError, toBatonError } from "../errors.js";
import { addBench } from "./bench.js";
import { outliveReaders } from "./closed-output.js";
import { addDemo } from "./demo.js";
import { addDoctor } from "./doctor.js";
import { addEval } from "./eval.js";
import { addGrpo } from "./grpo.js";
import { packageVersion } from "./package.js";
import { addRun } from "./run.js";
import { addSetup } from "./setup-command.js";

const program = new Command("baton")
  .description("Hands the GPUs of a node back and forth between DeepSpeed training ranks and inference engines.")
  .version(packageVersion())
  .showHelpAfterError("(`baton --help` lists commands and options)")
  .enablePositionalOptions();

addRun(program);
addGrpo(program);
addEval(program);
addDemo(program);
addSetup(program);
addBench(program);
addDoctor(program);

outliveReaders();
try {
  await program.parseAsync(process.argv);
} catch (error) {
  const wrapped = toBatonError(error);
  process.stderr.write(`${wrapped.describe()}\n`);
  if (!(error instanceof BatonError) && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
}
