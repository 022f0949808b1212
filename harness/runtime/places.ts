// SPDX-License-Identifier: Apache-2.0

/** What stands in each of the four places: a real program, where the settings name one, or a fake. */
import { ROOT } from "../base/root.ts";
import { basename, join } from "node:path";
import { findBuilt, type Place, PLACES, placeList, type Settings } from "../base/settings.ts";
import { HarnessError } from "../base/errors.ts";
import { readable } from "../base/readable.ts";
import { asksFor, programProblem, words } from "../base/command.ts";
import { userId } from "../base/machine.ts";
import { shortCommand } from "../base/short-command.ts";
import type { Standing } from "../report/model.ts";

/** What stands in a place: the command that starts it, and what the first line of every run says about it. */
export interface Part {
  real: boolean;
  label: string;
  command: string[];
  /** On a real engine, once it is there: the supervisor's, or, of the engine, that of its sandboxes. */
  image?: Standing["image"];
}

export type Parts = Record<Place, Part>;

function fake(place: Place): Part {
  const program = join(ROOT, "fakes", `${place}.ts`);
  return { real: false, label: "fake", command: [process.execPath, program] };
}

/**
 * Decides what stands in each place. Nothing is started, and only the file system is read, so that scenarios can ask
 * while they are registered; `checkParts` asks the programs themselves.
 * @throws HarnessError when the settings contradict each other or a required real program is missing.
 */
export function findParts(settings: Settings): Parts {
  const forced = placeList(settings.fake);
  const required = placeList(settings.require);
  const contradiction = forced.find((place) => required.includes(place));
  if (contradiction) {
    throw new HarnessError(`OPENSHELL_E2E_REQUIRE and OPENSHELL_E2E_FAKE both name ${contradiction}`);
  }
  const real = (place: Place, command: string[], label: string): Part | undefined =>
    command[0] && !forced.includes(place) ? { real: true, label, command } : undefined;

  const gateway = built(settings, "openshell-gateway", settings.gatewayBin);
  const driver = built(settings, "openshell-driver-podman", settings.driverBin);
  const custom = words(settings.driverCmd);
  const isDriversOwn = bringsEngine(settings);
  const podman = settings.podmanSocket || (settings.sandboxImage && (Bun.which("podman") ?? ""));
  const parts: Parts = {
    gateway: real("gateway", [gateway], "openshell-gateway") ?? fake("gateway"),
    driver:
      real("driver", custom, `${basename(custom[0] ?? "")} (custom)`) ??
      real("driver", [driver], "openshell-driver-podman") ??
      fake("driver"),
    engine: {
      ...(real("engine", [podman], "podman") ?? fake("engine")),
      ...(isDriversOwn && { label: "the driver's own" }),
    },
    supervisor:
      real("supervisor", [settings.supervisorImage], settings.supervisorImage) ?? fake("supervisor"),
  };
  const missing = required.find((place) => !parts[place].real);
  if (missing) {
    throw new HarnessError(
      `OPENSHELL_E2E_REQUIRE names ${missing}, but none was found. ${HOW_TO_NAME[missing]}`,
    );
  }
  if (isDriversOwn) {
    checkImages(settings, parts);
    return parts;
  }
  if (parts.engine.real && !settings.sandboxImage) {
    throw new HarnessError("OPENSHELL_SANDBOX_IMAGE: a real engine needs the image that sandboxes run");
  }
  if (parts.supervisor.real && !parts.engine.real) {
    throw new HarnessError(
      "OPENSHELL_SUPERVISOR_IMAGE: the real supervisor needs a real engine; set OPENSHELL_PODMAN_SOCKET, " +
        "or install podman and set OPENSHELL_SANDBOX_IMAGE",
    );
  }
  return parts;
}

/** Whether the driver has an engine of its own, which the harness does not know: one that does not ask for ours. */
export const bringsEngine = ({ driverCmd, fake }: Settings): boolean =>
  driverCmd !== "" && !asksFor(driverCmd, "podman_socket") && !placeList(fake).includes("driver");

/** @throws HarnessError when a driver asks for images that are not on its engine, since only ours has the harness's. */
function checkImages({ driverCmd, sandboxImage }: Settings, { supervisor }: Parts): void {
  const missing = (image: string, advice: string) =>
    new HarnessError(
      `The driver's command has ${image}, but no {podman_socket}: on the driver's own engine no image is known. ${advice}`,
    );
  if (asksFor(driverCmd, "sandbox_image") && !sandboxImage)
    throw missing("{sandbox_image}", "Set OPENSHELL_SANDBOX_IMAGE");
  if (asksFor(driverCmd, "supervisor_image") && !supervisor.real)
    throw missing(
      "{supervisor_image}",
      "Set OPENSHELL_SUPERVISOR_IMAGE, or start the program whose path is {supervisor}",
    );
}

/** How a user puts the real program in a place. */
export const HOW_TO_NAME: Record<Place, string> = {
  gateway: "Set OPENSHELL_GATEWAY_BIN, or OPENSHELL_REPO to a built checkout",
  driver: "Set OPENSHELL_DRIVER_BIN, OPENSHELL_DRIVER_CMD, or OPENSHELL_REPO to a built checkout",
  engine: "Set OPENSHELL_PODMAN_SOCKET, or install podman and set OPENSHELL_SANDBOX_IMAGE",
  supervisor: "Set OPENSHELL_SUPERVISOR_IMAGE",
};

const built = (settings: Settings, program: Parameters<typeof findBuilt>[1], named: string): string =>
  named || (settings.repo && findBuilt(settings.repo, program));

/** The openshell CLI, if there is one. */
export const findCli = (settings: Settings): string => built(settings, "openshell", settings.cliBin);

/** What a program prints as its version. @throws Error when it cannot be run, or does not end. */
async function saysOfItself(path: string): Promise<string> {
  const { stdout } = await shortCommand([path, "--version"], { env: { PATH: process.env.PATH ?? "" } });
  return stdout.toString().trim();
}

/**
 * Asks the real programs who they are, and adds their versions to the labels.
 * @throws HarnessError when a binary is not the program that its setting promises.
 */
export async function checkParts(parts: Parts, settings: Settings): Promise<Parts> {
  const version = async (part: Part, program: string, setting: string): Promise<Part> => {
    if (!part.real || part.command.length !== 1) return part;
    const [path = ""] = part.command;
    const said = await saysOfItself(path).catch((error: Error) => {
      throw new HarnessError(`${setting}: ${path} --version: ${error.message}`);
    });
    if (!said.startsWith(`${program} `)) {
      throw new HarnessError(
        `${setting}: ${path} is not ${program}: \`--version\` printed ${JSON.stringify(said.slice(0, 80))}`,
      );
    }
    return { ...part, label: said };
  };
  const isCustom = settings.driverCmd !== "";
  const problem = isCustom && parts.driver.real && programProblem(parts.driver.command[0] ?? "");
  if (problem) throw new HarnessError(`OPENSHELL_DRIVER_CMD: ${problem}`);
  const [gateway, driver, engine] = await Promise.all([
    version(
      parts.gateway,
      "openshell-gateway",
      settings.gatewayBin ? "OPENSHELL_GATEWAY_BIN" : "OPENSHELL_REPO",
    ),
    isCustom
      ? parts.driver
      : version(
          parts.driver,
          "openshell-driver-podman",
          settings.driverBin ? "OPENSHELL_DRIVER_BIN" : "OPENSHELL_REPO",
        ),
    parts.engine.real && !bringsEngine(settings) ? describeEngine(parts.engine, settings) : parts.engine,
  ]);
  return { ...parts, gateway, driver, engine };
}

async function describeEngine(part: Part, settings: Settings): Promise<Part> {
  const { Engine } = await import("./engine.ts");
  if (settings.podmanSocket) {
    const { version, rootless } = await new Engine(settings.podmanSocket).info();
    return { ...part, label: `podman ${version} (${rootless ? "rootless" : "rootful"})` };
  }
  const { stdout, stderr } = await shortCommand([...part.command, "--version"]).catch((error: Error) => {
    throw new HarnessError(`podman: \`podman --version\`: ${error.message}`);
  });
  const version = /\d+\.\d+\.\d+\S*/.exec(stdout.toString())?.[0];
  if (!version) throw new HarnessError(`podman: \`podman --version\` printed ${stdout}${stderr}`.trim());
  return { ...part, label: `podman ${version} (${userId() === 0 ? "rootful" : "rootless"})` };
}

/** "gateway fake · driver openshell-driver-podman 0.0.112 · engine podman 5.4.2 (rootful) · supervisor fake" */
export const describeParts = (parts: Parts, places: readonly Place[] = PLACES): string =>
  readable(places.map((place) => `${place} ${parts[place].label}`).join(" · "));
