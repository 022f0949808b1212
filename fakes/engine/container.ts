// SPDX-License-Identifier: Apache-2.0

/** What a container is: what was asked for, its record, and what follows from the two. */
import { constants as os } from "node:os";
import { join } from "node:path";

/** The part of libpod's SpecGenerator that means something for a process, or is shown to whoever inspects it. */
export interface Spec {
  name?: string;
  image?: string;
  entrypoint?: string[];
  command?: string[];
  env?: Record<string, string>;
  labels?: Record<string, string>;
  hostname?: string;
  user?: string;
  work_dir?: string;
  terminal?: boolean;
  stop_timeout?: number;
  stop_signal?: number;
  hostadd?: string[];
  networks?: Record<string, object>;
  Networks?: Record<string, object>;
  volumes?: { name?: string; dest?: string; Name?: string; Dest?: string; options?: string[] }[];
  image_volumes?: { source: string; destination: string; rw?: boolean }[];
  mounts?: { type?: string; source?: string; destination: string; options?: string[] }[];
  secrets?: { source: string; target?: string; uid?: number; gid?: number; mode?: number }[];
  portmappings?: { host_port?: number; container_port: number; protocol?: string; host_ip?: string }[];
  resource_limits?: {
    cpu?: { quota?: number; period?: number };
    memory?: { limit?: number };
    pids?: { limit?: number };
  };
  healthconfig?: {
    test?: string[];
    Test?: string[];
    Retries?: number;
    Timeout?: number;
    StartPeriod?: number;
  };
  cap_add?: string[];
  cap_drop?: string[];
  no_new_privileges?: boolean;
  seccomp_profile_path?: string;
}

/** Parts of a SpecGenerator that mean something for a process, too, and that nothing here makes true. */
export const NOT_SERVED = ["rootfs", "pod", "secret_env", "overlay_volumes", "remove", "restart_policy"];

export interface Mount {
  type: "volume" | "bind" | "tmpfs" | "image";
  /** As the caller names it: a volume, a host path, an image. */
  source: string;
  /** Where it is on the host; a tmpfs is nowhere. */
  path: string;
  destination: string;
  options: string[];
  writable: boolean;
}

/** What starting a container put in its place inside the rootfs, to be taken away when it stops. */
export interface Mounted {
  target: string;
  link: boolean;
  /** Where the file or folder that the mount hides was moved to. */
  hidden: string | null;
}

export interface HealthResult {
  Start: string;
  End: string;
  ExitCode: number;
  Output: string;
}

/** The process that waits for the container's own, and how to tell it from a later one with the same pid. */
export interface Monitor {
  pid: number;
  birth: string;
  /** How many processes and threads the machine had started before it. */
  startedBefore: number;
}

export interface Container {
  id: string;
  name: string;
  /** With the image's entrypoint and command where it had none. */
  spec: Spec & { entrypoint: string[]; command: string[]; labels: Record<string, string> };
  imageId: string;
  imageName: string;
  /** Its own folder on the host: its logs, its rootfs. */
  folder: string;
  environment: Record<string, string>;
  workingDirectory: string;
  networks: string[];
  mounts: Mount[];
  ports: { host_ip: string; container_port: number; host_port: number; range: number; protocol: string }[];
  created: string;
  status: "created" | "running" | "paused" | "stopping" | "exited";
  mounted: Mounted[];
  pid: number;
  monitor: Monitor | null;
  startedAt: string;
  finishedAt: string;
  exitCode: number;
  error: string;
  stoppedByUser: boolean;
  health: { Status: string; FailingStreak: number; Log: HealthResult[] | null } | null;
}

export const rootfs = ({ folder }: Container): string => join(folder, "rootfs");

export const isUp = ({ status }: Container): boolean => ["running", "paused", "stopping"].includes(status);

export const hostnameOf = (id: string, spec: Spec): string => spec.hostname || id.slice(0, 12);

/** The health check's command line in Podman's form, null if there is none. */
export function healthTest({ spec }: Container): string[] | null {
  const test = spec.healthconfig?.test ?? spec.healthconfig?.Test ?? [];
  return test.length === 0 || test[0] === "NONE" ? null : test;
}

export const signalName = (number: number): NodeJS.Signals | undefined =>
  Object.entries(os.signals).find(([, value]) => value === number)?.[0] as NodeJS.Signals | undefined;

export const stopSignal = ({ spec }: Container): NodeJS.Signals =>
  signalName(spec.stop_signal ?? 15) ?? "SIGTERM";

/** "name=address,…" of the extra hosts; the host itself is the loopback address. */
const hosts = ({ spec }: Container): string =>
  (spec.hostadd ?? [])
    .flatMap((entry) => {
      const [names = "", address] = entry.split(/:(.*)/s);
      return names.split(";").map((name) => `${name}=${address === "host-gateway" ? "127.0.0.1" : address}`);
    })
    .join(",");

/** The environment of every process in it: as inspect shows it, and where a process finds its files and hosts. */
export const processEnvironment = (container: Container): Record<string, string> => ({
  ...container.environment,
  OPENSHELL_FAKE_ROOT: rootfs(container),
  OPENSHELL_FAKE_HOSTS: hosts(container),
});
