// SPDX-License-Identifier: Apache-2.0

/**
 * The fakes as programs. Compiled, with their bytecode inside, they start in a third of the time, and a sandbox's
 * supervisor starts as often as there are sandboxes. Each is compiled once per change of its sources and kept in
 * node_modules/.cache, or in the user's own cache where the checkout is somebody else's or cannot be written to; the
 * supervisor is also what goes into the image for a real engine.
 */
import { ROOT } from "../base/root.ts";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  utimesSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { isAbsolute, join } from "node:path";
import { HarnessError } from "../base/errors.ts";
import type { Place } from "../base/settings.ts";
import { birthOf } from "./processes.ts";
import type { Run } from "./run.ts";
import { RUN_MARK } from "./marks.ts";
import { programsProblem, userId } from "../base/machine.ts";
import { isOurFolder } from "../base/owner.ts";
import { shortCommand } from "../base/short-command.ts";

const KEPT = 3;
/** It takes half a second; many times that on a machine that has no time for anybody. In milliseconds. */
const COMPILE_MS = 120_000;
/** Most fakes are over before a compiler of hot code pays, or a collector that works ahead: without them, a life is cheap. */
const BRIEF = ["BUN_JSC_useJIT=0", "BUN_GC_TIMER_DISABLE=1"];
/** One that is asked thousands of things in seconds gains by a first compiler, and not yet by the next. */
const BUSY = ["BUN_JSC_useDFGJIT=0"];

/** Where compiled fakes may be kept, best first. */
export function cachePlaces(): string[] {
  const { XDG_CACHE_HOME: named, HOME: home } = process.env;
  const own = named || (home && join(home, ".cache"));
  return [
    join(ROOT, "node_modules", ".cache", "openshell-e2e"),
    ...(own && isAbsolute(own) ? [join(own, "openshell-e2e")] : []),
    join(tmpdir(), `openshell-e2e-cache-${userId()}`),
  ];
}

/** Makes the folder, unless it is there. What is in it gets executed: nobody else may be able to put anything there. */
function cacheProblem(folder: string): string | undefined {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    return (error as Error).message;
  }
  return isOurFolder(folder)
    ? programsProblem(folder)
    : "it is not a folder to which this user alone can write";
}

/** The folder of compiled fakes. @throws HarnessError when there is no place for one, with what is wrong with each. */
export function cacheFolder(places = cachePlaces()): string {
  const tried: string[] = [];
  for (const folder of places) {
    const problem = cacheProblem(folder);
    if (!problem) return folder;
    tried.push(`  ${folder}: ${problem}`);
  }
  throw new HarnessError(
    `There is no folder for the compiled fakes. Set XDG_CACHE_HOME to a folder of your own. Tried:\n${tried.join("\n")}`,
  );
}

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
 * @param run whose compiler it then is
 * @returns its path, the command line that starts it, or starts it for much work, and the digest that it was made from.
 */
export async function compiledFake(
  name: Place,
  run?: Run,
): Promise<{ path: string; command: string[]; busy: string[]; digest: string }> {
  const digest = digestOfFakes();
  const cache = cacheFolder();
  const path = join(cache, `${name}-${digest}`);
  const [command, busy] = [BRIEF, BUSY].map((settings) => ["/usr/bin/env", ...settings, path]);
  const compiled = { path, command: command!, busy: busy!, digest };
  if (isFile(path)) {
    // What is in use is none of the old ones that `prune` removes.
    utimesSync(path, new Date(), new Date());
    return compiled;
  }
  mustHaveRoom(cache);
  prune(cache, `${name}-`);
  removeDeadCompilers(cache);
  // Several runs may compile at once: each in a folder of its own, and the last one to be done stays. Beside its result
  // the compiler leaves what it was about to write in the folder that it works in, a hundred megabytes, when it is killed.
  const folder = mkdtempSync(join(cache, `${COMPILING}${process.pid}-`));
  const fresh = join(folder, name);
  try {
    const compiler = await shortCommand(
      [
        ...[process.execPath, "build", "--compile", "--bytecode", "--format=esm"],
        // What lies in a sandbox's workspace must not configure its supervisor.
        ...["--no-compile-autoload-dotenv", "--no-compile-autoload-bunfig"],
        ...[join(ROOT, "fakes", `${name}.ts`), "--outfile", fresh],
      ],
      {
        deadlineMs: COMPILE_MS,
        cwd: folder,
        // So that it is swept when whoever waits for it was killed.
        env: run ? { ...process.env, [RUN_MARK]: run.id } : process.env,
      },
    ).catch((error: Error) => {
      throw new HarnessError(`fakes/${name}.ts does not compile: ${error.message}`);
    });
    if (compiler.exitCode !== 0)
      throw new HarnessError(`fakes/${name}.ts does not compile:\n${compiler.stderr.toString().trim()}`);
    renameSync(fresh, path);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return compiled;
}

/** How the folder of a compiler begins; the pid of the process that started it comes next. */
const COMPILING = ".compiling-";

/** Removes what compilers left whose starters are gone. */
export function removeDeadCompilers(cache = cacheFolder()): void {
  for (const name of readdirSync(cache)) {
    if (!name.startsWith(COMPILING)) continue;
    const starter = Number(name.slice(COMPILING.length).split("-")[0]);
    if (birthOf(starter) === "") rmSync(join(cache, name), { recursive: true, force: true });
  }
}

/** What must be free where the four fakes are compiled, at once as a rule, in bytes. Each has some 110 MiB. */
const COMPILED = 512 * 2 ** 20;

/** @throws HarnessError when compiled fakes have no room: the compiler would leave halves of them. */
export function mustHaveRoom(cache: string): void {
  const { bavail, bsize } = statfsSync(cache);
  const free = bavail * bsize;
  if (free < COMPILED)
    throw new HarnessError(
      `The folder of compiled fakes has too little room: ${cache} has ${Math.floor(free / 2 ** 20)} MiB free, they need ` +
        `${COMPILED / 2 ** 20}. Make room there`,
    );
}

/** Removes all but the newest few: an older one may still be at work, in a stack that `up` keeps. */
function prune(cache: string, prefix: string): void {
  const files = readdirSync(cache)
    .filter((file) => file.startsWith(prefix))
    .map((file) => join(cache, file));
  const byAge = files.toSorted((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  for (const old of byAge.slice(KEPT)) rmSync(old, { force: true });
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;
}
