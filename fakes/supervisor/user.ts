// SPDX-License-Identifier: Apache-2.0

/**
 * Whom the processes of a sandbox run as, and with which environment.
 */
import { existsSync, readFileSync } from "node:fs";
import type { Log } from "./log.ts";
import { rooted, words, type Settings } from "./settings.ts";

/** Whom commands run as. Without `uid` they run as the supervisor itself. */
export interface User {
  name: string;
  home: string;
  uid?: number;
  gid?: number;
}

/**
 * The image's user, else `sandbox`, when root starts the supervisor in a container. A user that /etc/passwd does not
 * know leaves commands with root; the real program refuses such an image.
 */
export function findUser(settings: Settings, log: Log): User {
  const home = rooted(settings, settings.workdir);
  if (settings.root || process.getuid?.() !== 0) return { name: "sandbox", home };
  const [wanted = "", group = ""] = (settings.imageUser || "sandbox").split(":");
  const passwd = existsSync("/etc/passwd") ? readFileSync("/etc/passwd", "utf8") : "";
  const entry = passwd
    .split("\n")
    .map((line) => line.split(":"))
    .find(([name, , uid]) => name === wanted || uid === wanted);
  if (!entry) {
    log.write("warn", `no user '${wanted}' in /etc/passwd: commands run as root`);
    return { name: "root", home };
  }
  return {
    name: entry[0]!,
    home,
    uid: Number(entry[2]),
    gid: Number(/^\d+$/.test(group) ? group : entry[3]),
  };
}

/** What only the supervisor may know; the main process inherits every other variable of the container. */
const SUPERVISOR_ONLY = words(`
  OCI_IMAGE_USER SANDBOX_UID SANDBOX_GID SANDBOX_TOKEN SANDBOX_TOKEN_FILE K8S_SA_TOKEN_FILE TLS_CA TLS_CERT TLS_KEY
  PROVIDER_SPIFFE_WORKLOAD_API_SOCKET NETWORK_RUNTIME_CAPABILITIES FAKE_HOSTS`)
  .map((name) => `OPENSHELL_${name}`)
  .concat("BUN_JSC_useJIT", "BUN_GC_TIMER_DISABLE");

/** The main process: the container's environment, then identity and TERM unless the user set them. */
export function mainEnvironment(settings: Settings, user: User): Record<string, string> {
  const inherited = Object.entries(process.env).filter(([name]) => !SUPERVISOR_ONLY.includes(name));
  const identity = {
    HOME: user.home,
    USER: user.name,
    SHELL: "/bin/bash",
    TERM: settings.main.tty ? "xterm-256color" : "dumb",
  };
  const { HOME, USER, SHELL, TERM } = { ...identity, ...settings.userEnvironment };
  return {
    ...(Object.fromEntries(inherited) as Record<string, string>),
    OPENSHELL_SANDBOX: "1",
    HOME,
    USER,
    SHELL,
    TERM,
  };
}

/** A command over SSH: nothing but identity, PATH, TERM and what the user set, except names of OpenShell's own. */
export function commandEnvironment(settings: Settings, user: User, term: string): Record<string, string> {
  return {
    OPENSHELL_SANDBOX: "1",
    ...(settings.root ? { OPENSHELL_FAKE_ROOT: settings.root } : {}),
    HOME: user.home,
    USER: user.name,
    SHELL: "/bin/bash",
    PATH: process.env.PATH ?? "/usr/local/bin:/usr/bin:/bin",
    TERM: term,
    ...Object.fromEntries(
      Object.entries(settings.userEnvironment).filter(([name]) => !name.startsWith("OPENSHELL_")),
    ),
  };
}
