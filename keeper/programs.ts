// SPDX-License-Identifier: Apache-2.0

/**
 * The fakes as programs. Compiled, with their bytecode inside, they start in a third of the time, and a sandbox's
 * supervisor starts as often as there are sandboxes. Each is compiled once per change of its sources and kept in
 * node_modules/.cache; the supervisor is also what goes into the image for a real engine.
 */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { HarnessError, type Place } from "../harness.ts";
import { shortCommand } from "./short-command.ts";

const ROOT = join(import.meta.dir, "..");
const CACHE = join(ROOT, "node_modules", ".cache", "openshell-e2e");
const KEPT = 3;
/** It takes half a second; many times that on a machine that has no time for anybody. In milliseconds. */
const COMPILE_MS = 120_000;
/** Most fakes are over before a compiler of hot code pays, or a collector that works ahead: without them, a life is cheap. */
const BRIEF = ["BUN_JSC_useJIT=0", "BUN_GC_TIMER_DISABLE=1"];
/** One that is asked thousands of things in seconds gains by a first compiler, and not yet by the next. */
const BUSY = ["BUN_JSC_useDFGJIT=0"];

/** A digest of all that a fake is made of: the sources, the contract's codecs, the locked packages, and Bun itself. */
function digestOfFakes(): string {
  const digest = new Bun.CryptoHasher("sha256").update(Bun.version);
  const sources = [...new Bun.Glob("{fakes,proto}/**/*.ts").scanSync(ROOT)].toSorted();
  const isSource = (file: string) => !file.endsWith(".test.ts") && !file.includes("/types/");
  for (const file of ["bun.lock", ...sources.filter(isSource)]) {
    digest.update(file).update(readFileSync(join(ROOT, file)));
  }
  return digest.digest("hex").slice(0, 16);
}

/**
 * The compiled program of a fake, made now if there is none of its present sources.
 * @returns its path, the command line that starts it, or starts it for much work, and the digest that it was made from.
 */
export async function compiledFake(
  name: Place,
): Promise<{ path: string; command: string[]; busy: string[]; digest: string }> {
  const digest = digestOfFakes();
  const path = join(CACHE, `${name}-${digest}`);
  const [command, busy] = [BRIEF, BUSY].map((settings) => ["/usr/bin/env", ...settings, path]);
  const compiled = { path, command: command!, busy: busy!, digest };
  if (isFile(path)) {
    // What is in use is none of the old ones that `prune` removes.
    utimesSync(path, new Date(), new Date());
    return compiled;
  }
  mkdirSync(CACHE, { recursive: true });
  prune(`${name}-`);
  // Several runs may compile at once: each under a name of its own, and the last one to be done stays.
  const fresh = join(CACHE, `.${name}-${digest}-${process.pid}`);
  const compiler = await shortCommand(
    [
      ...[process.execPath, "build", "--compile", "--bytecode", "--format=esm"],
      // What lies in a sandbox's workspace must not configure its supervisor.
      ...["--no-compile-autoload-dotenv", "--no-compile-autoload-bunfig"],
      ...[join(ROOT, "fakes", `${name}.ts`), "--outfile", fresh],
    ],
    { deadlineMs: COMPILE_MS },
  ).catch((error: Error) => {
    throw new HarnessError(`fakes/${name}.ts does not compile: ${error.message}`);
  });
  if (compiler.exitCode !== 0)
    throw new HarnessError(`fakes/${name}.ts does not compile:\n${compiler.stderr.toString().trim()}`);
  renameSync(fresh, path);
  return compiled;
}

/** Removes all but the newest few: an older one may still be at work, in a stack that `up` keeps. */
function prune(prefix: string): void {
  const files = readdirSync(CACHE)
    .filter((file) => file.startsWith(prefix) || file.startsWith(`.${prefix}`))
    .map((file) => join(CACHE, file));
  const byAge = files.toSorted((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  for (const old of byAge.slice(KEPT)) rmSync(old, { force: true });
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;
}
