// SPDX-License-Identifier: Apache-2.0

/** The containers there are: how they are made and found. */
import { chmodSync, chownSync, constants, cpSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { NEVER, timestamp } from "./clock.ts";
import { type Container, hostnameOf, NOT_SERVED, rootfs, type Spec } from "./container.ts";
import type { Events } from "./events.ts";
import { checkName, fail, type Filters, filtersOf, flag, hasLabels, matcher } from "./http.ts";
import type { Image, Images } from "./images.ts";
import { planMounts } from "./mounts.ts";
import { DEFAULT_NETWORK, type Networks } from "./networks.ts";
import type { Secrets } from "./secrets.ts";
import { type Collection, randomHex, removeTree, type State } from "./state.ts";
import type { Volumes } from "./volumes.ts";

const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const FILTERS: Filters<Container> = {
  label: ({ spec }, wanted) => hasLabels(spec.labels, wanted),
  name: ({ name }, wanted) => wanted.some((want) => new RegExp(want).test(name)),
  id: ({ id }, wanted) => wanted.some((want) => id.startsWith(want)),
  status: ({ status }, wanted) => wanted.includes(status),
  network: ({ networks }, wanted) => wanted.some((want) => networks.includes(want)),
};

/** What else the engine keeps. */
export interface Parts {
  state: State;
  events: Events;
  images: Images;
  volumes: Volumes;
  secrets: Secrets;
  networks: Networks;
}

export class Containers {
  readonly all: Collection<Container>;

  constructor(private readonly parts: Parts) {
    this.all = parts.state.collection("containers");
  }

  /** Notes on disk how it is now, unless it was removed meanwhile. */
  save(container: Container): void {
    if (this.all.has(container.id)) this.all.set(container.id, container);
  }

  find(nameOrId: string): Container | undefined {
    const all = [...this.all.values()];
    return (
      this.all.get(nameOrId) ??
      all.find(({ name }) => name === nameOrId) ??
      (nameOrId.length >= 3 ? all.find(({ id }) => id.startsWith(nameOrId)) : undefined)
    );
  }

  named(nameOrId: string): Container {
    const missing = `no container with name or ID "${nameOrId}" found`;
    return this.find(nameOrId) ?? fail(404, "no such container", missing);
  }

  list(query: URLSearchParams): Container[] {
    const matches = matcher(query, FILTERS);
    const all = flag(query, "all") || "status" in filtersOf(query);
    return [...this.all.values()]
      .filter((container) => (all || container.status === "running") && matches(container))
      .toSorted((a, b) => (a.created < b.created ? -1 : 1));
  }

  using(what: (container: Container) => boolean): Container[] {
    return [...this.all.values()].filter(what);
  }

  emit(container: Container, action: string, extra: Record<string, string> = {}): void {
    const { id, name, spec, imageName: image } = container;
    this.parts.events.emit("container", action, id, { ...spec.labels, image, name, ...extra }, image);
  }

  /** Makes a container and all its files, or nothing. */
  create(spec: Spec): Container {
    const { images, secrets, networks, volumes, state } = this.parts;
    refuseWhatIsMissing(spec);
    if (!spec.image) fail(500, "must provide image or rootfs");
    const image = images.find(spec.image) ?? fail(404, "image not known", `no such image: ${spec.image}`);
    const id = randomHex(64);
    const name = spec.name || `container_${id.slice(0, 12)}`;
    checkName(name, "running container create option");
    this.#refuseTaken(name);
    for (const { source } of spec.secrets ?? []) secrets.named(source, 500);
    const attached = Object.keys({ ...spec.networks, ...spec.Networks });
    const joined = (attached.length > 0 ? attached : [DEFAULT_NETWORK]).map(
      (each) => networks.named(each, 500).name,
    );
    const mounts = planMounts(spec, images);
    const entrypoint = spec.entrypoint ?? image.Config.Entrypoint ?? [];
    const command = spec.command ?? (spec.entrypoint ? [] : (image.Config.Cmd ?? []));
    if (entrypoint.length + command.length === 0) {
      fail(500, "no command or entrypoint provided, and no CMD or ENTRYPOINT from image");
    }
    const container: Container = {
      id,
      name,
      spec: { ...spec, entrypoint, command, labels: spec.labels ?? {} },
      imageId: image.Id,
      imageName: image.RepoTags[0] ?? image.Id,
      folder: state.path("containers", id),
      environment: environmentOf(id, spec, image),
      workingDirectory: spec.work_dir || image.Config.WorkingDir || "/",
      networks: joined,
      mounts,
      ports: (spec.portmappings ?? []).map((port) => ({
        host_ip: port.host_ip ?? "",
        container_port: port.container_port,
        host_port: port.host_port || freePort(),
        range: 1,
        protocol: port.protocol ?? "tcp",
      })),
      created: timestamp(),
      status: "created",
      mounted: [],
      pid: 0,
      monitor: null,
      startedAt: NEVER,
      finishedAt: NEVER,
      exitCode: 0,
      error: "",
      stoppedByUser: false,
      health: null,
    };
    mkdirSync(container.folder);
    try {
      this.#fill(container, image);
      for (const mount of mounts) {
        if (mount.type !== "volume") continue;
        mount.path = (volumes.get(mount.source) ?? volumes.create({ Name: mount.source })).Mountpoint;
      }
      this.all.set(id, container);
    } catch (error) {
      removeTree(container.folder);
      throw error;
    }
    this.emit(container, "create");
    return container;
  }

  #refuseTaken(name: string): void {
    const [holder] = this.using((other) => other.name === name);
    if (!holder) return;
    fail(
      500,
      "that name is already in use",
      `creating container storage: the container name "${name}" is already in use by ${holder.id}. ` +
        "You have to remove that container to be able to reuse that name",
    );
  }

  /** The image's files and the secrets. */
  #fill(container: Container, image: Image): void {
    const { images, secrets } = this.parts;
    const root = rootfs(container);
    cpSync(images.tree(image), root, {
      recursive: true,
      verbatimSymlinks: true,
      mode: constants.COPYFILE_FICLONE,
    });
    chmodSync(root, 0o755);
    for (const { source, target, uid = 0, gid = 0, mode = 0o444 } of container.spec.secrets ?? []) {
      const secret = secrets.named(source, 500);
      const inside = target?.startsWith("/") ? target : `/run/secrets/${target ?? secret.Spec.Name}`;
      const path = join(root, normalize(inside));
      mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
      writeFileSync(path, secrets.value(secret), { mode });
      if (process.getuid?.() === 0) chownSync(path, uid, gid);
    }
  }

  remove(container: Container): void {
    // In this order: an engine that starts removes the folders of containers that it does not know.
    this.all.delete(container.id);
    removeTree(container.folder);
    const ran = container.startedAt !== NEVER;
    this.emit(container, "remove", ran ? { containerExitCode: String(container.exitCode) } : {});
  }
}

/** What would change what the container is, and nothing here makes true, is refused by its name. */
function refuseWhatIsMissing(spec: object): void {
  for (const [part, value] of Object.entries(spec)) {
    const isSet = typeof value === "object" ? Object.keys(value ?? {}).length > 0 : Boolean(value);
    if (isSet && NOT_SERVED.includes(part)) fail(500, "not served by this fake engine", part);
  }
}

/** The environment as inspect shows it: Podman's own, the image's, the spec's. */
function environmentOf(id: string, spec: Spec, { Config }: Image): Record<string, string> {
  const ofImage = (Config.Env ?? []).map((pair) => pair.split(/=(.*)/s).slice(0, 2) as [string, string]);
  return {
    PATH: DEFAULT_PATH,
    ...(spec.terminal && { TERM: "xterm" }),
    container: "podman",
    HOSTNAME: hostnameOf(id, spec),
    HOME: "/root",
    ...Object.fromEntries(ofImage),
    ...spec.env,
  };
}

/** A port nobody holds right now. Nothing will listen on it: the container's process is on the host's own network. */
function freePort(): number {
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  probe.stop(true);
  return probe.port;
}
