// SPDX-License-Identifier: Apache-2.0

/** `doctor`: what is here, what is missing, and the command or setting that gets it. Starts nothing. */
import { accessSync, constants, existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { PLACES, type Settings } from "../base/settings.ts";
import { programProblem } from "../base/command.ts";
import { checkLimits, longestSocket, mustStartPrograms, programsProblem, roomFor } from "../base/machine.ts";
import { bringsEngine, findCli, findParts, HOW_TO_NAME } from "../runtime/places.ts";
import { cacheFolder } from "../runtime/programs.ts";
import { memoryProblem, Run } from "../runtime/run.ts";
import { readable } from "../base/readable.ts";
import { shortCommand } from "../base/short-command.ts";
import { Engine } from "../runtime/engine.ts";

type Mark = "ok" | "fake" | "missing" | "note";

export const command: Command = async (settings) => {
  let missing = 0;
  const say = (mark: Mark, what: string, advice = "") => {
    if (mark === "missing") missing++;
    console.log(readable(`${mark.padEnd(8)}${what}${advice ? `\n        ${advice}` : ""}`));
  };
  say("ok", `bun ${Bun.version} on ${process.platform} ${process.arch}`);
  say(
    Bun.which("sh") ? "ok" : "missing",
    "sh, to start a run",
    Bun.which("sh") ? "" : "Add its folder to PATH",
  );
  say(Bun.which("tar") ? "ok" : "missing", "tar, to make images", Bun.which("tar") ? "" : install("tar"));
  reportMachine(settings, say);
  reportPlaces(settings, say);
  const cli = findCli(settings);
  if (cli) say("ok", `openshell CLI ${cli}`);
  else
    say(
      "note",
      "no openshell CLI",
      "Only upstream's own tests under `with` need it: OPENSHELL_BIN or OPENSHELL_REPO",
    );
  await reportPodman(settings, say);
  reportCgroups(say);
  await reportRuns(settings, say).catch((error: unknown) => {
    if (!(error instanceof HarnessError)) throw error;
    say("missing", error.message);
  });
  return missing > 0 ? EXIT.error : EXIT.ok;
};

/** What a run would refuse before it starts, found out in the same way. */
function reportMachine(settings: Settings, say: Say): void {
  const attempt = (find: () => string) => {
    try {
      say("ok", find());
    } catch (error) {
      if (!(error instanceof HarnessError)) throw error;
      say("missing", error.message.replaceAll("\n", "\n        "));
    }
  };
  const root = Run.root(settings);
  const place = existing(root);
  attempt(() => {
    const bytes = longestSocket(root);
    mustStartPrograms(place);
    return `run folder ${root}, ${roomFor(place)} MiB free, longest socket path ${bytes} bytes`;
  });
  if (!settings.runDir) {
    const named = process.env.TMPDIR;
    const problem = named ? programsProblem(tmpdir()) : memoryProblem();
    if (problem && named) say("note", `runs are not where TMPDIR says: ${problem}`);
    else if (problem) say("note", `runs are not in memory: ${problem}`, "They take a fifth longer on a disk");
  }
  attempt(() => `compiled fakes in ${cacheFolder()}`);
  attempt(() => `reports in ${mustBeWritable(settings.reports)}`);
  attempt(() => {
    checkLimits();
    return "limits of files and their size (ulimit)";
  });
}

/** The nearest folder above that exists: what is asked of a folder that a run makes is asked of that one. */
const existing = (path: string): string => (existsSync(path) ? path : existing(dirname(path)));

function mustBeWritable(reports: string): string {
  try {
    accessSync(existing(reports), constants.W_OK | constants.X_OK);
    return reports;
  } catch (error) {
    throw new HarnessError(`reports: ${(error as Error).message}\nName another folder with --reports`);
  }
}

type Say = (mark: Mark, what: string, advice?: string) => void;

function reportPlaces(settings: Settings, say: Say): void {
  try {
    const parts = findParts(settings);
    for (const place of PLACES) {
      const { real, label, command } = parts[place];
      const [program = ""] = command;
      const problem = place === "driver" && real && programProblem(program);
      if (problem) say("missing", `driver: ${problem}`, "OPENSHELL_DRIVER_CMD names it");
      else if (place === "engine" && bringsEngine(settings)) say("ok", `engine: ${label}`);
      else if (real) say("ok", `${place}: ${label} (${command.join(" ")})`);
      else say("fake", `${place}: the fake will be used`, `For the real one: ${HOW_TO_NAME[place]}`);
    }
  } catch (error) {
    if (!(error instanceof HarnessError)) throw error;
    say("missing", error.message);
  }
}

async function reportPodman(settings: Settings, say: Say): Promise<void> {
  const program = Bun.which("podman");
  if (program) {
    const said = await shortCommand([program, "--version"]).then(
      ({ stdout, stderr }) => `${stdout}${stderr}`.trim(),
      (error: Error) => error.message,
    );
    const version = /\d+\.\d+\S*/.exec(said)?.[0];
    const old = Number(version?.split(".")[0]) < 5;
    const limit = "The real openshell-driver-podman needs 5.0 or later; the TypeScript driver works with 4.3";
    if (version) say(old ? "note" : "ok", `podman ${version} (${program})`, old ? limit : "");
    else say("note", `podman (${program}) does not say its version: ${said}`);
  } else say("note", "no podman", install("podman"));
  if (!settings.podmanSocket) return;
  try {
    const { version, rootless, cgroups, events } = await new Engine(settings.podmanSocket).info();
    say(
      "ok",
      `Podman ${version} answers on ${settings.podmanSocket}, ${rootless ? "rootless" : "rootful"}, cgroup ${cgroups}`,
    );
    if (events === "file")
      say(
        "note",
        "Podman keeps events in a file, and loses some when it rotates it: a driver may miss that a sandbox is gone",
        'events_logfile_max_size = "0" in containers.conf, or events_logger = "journald"',
      );
    if (settings.sandboxImage)
      await reportImage(new Engine(settings.podmanSocket), settings.sandboxImage, say);
    if (settings.supervisorImage)
      await reportImage(new Engine(settings.podmanSocket), settings.supervisorImage, say);
  } catch (error) {
    say("missing", (error as Error).message, "OPENSHELL_PODMAN_SOCKET names that socket");
  }
}

async function reportImage(engine: Engine, image: string, say: Say): Promise<void> {
  if (await engine.hasImage(image)) say("ok", `image ${image}`);
  else say("note", `image ${image} is not on the engine`, `It will be pulled; or: podman pull ${image}`);
}

function reportCgroups(say: Say): void {
  if (process.platform !== "linux") return;
  if (existsSync("/sys/fs/cgroup/cgroup.controllers")) return say("ok", "cgroup v2");
  const advice = "The real openshell-driver-podman needs v2: boot with systemd.unified_cgroup_hierarchy=1";
  say("note", "cgroup v1 or hybrid", advice);
}

async function reportRuns(settings: Settings, say: Say): Promise<void> {
  for (const run of Run.all(settings)) {
    const state = await run.state();
    if (state === "silent") say("note", `run ${run.id}: ${run.silence}`);
    else if (state === "alive") {
      const kept = existsSync(`${run.folder}/up`);
      say("ok", `run ${run.id} is alive${kept ? ", kept by `up`" : ""}`);
    } else say("note", `run ${run.id} is dead and left ${run.folder}`, "bun harness.ts sweep");
  }
}

/** The command that installs a package on this system. */
function install(name: string): string {
  if (process.platform === "darwin") return `brew install ${name}`;
  const release = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  if (/\b(fedora|rhel|centos)\b/.test(release)) return `sudo dnf install ${name}`;
  if (/\b(arch)\b/.test(release)) return `sudo pacman -S ${name}`;
  return `sudo apt-get install ${name}`;
}
