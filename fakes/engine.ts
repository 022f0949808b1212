// SPDX-License-Identifier: Apache-2.0

/**
 * A container engine without containers: the part of Podman's libpod REST API that a compute driver needs, where a
 * container is a process and its filesystem a folder. Needs no root, no Podman, no kernel feature.
 *
 *   bun fakes/engine.ts --root DIR system service --time=0 unix:///path/to/socket
 *
 * Shapes, codes, messages and the order of events are those of Podman 5.4.2. A program in such a container has no
 * other root directory than the host: OPENSHELL_FAKE_ROOT tells it where the container's files are (an absolute path
 * P of the container is the file OPENSHELL_FAKE_ROOT + P), OPENSHELL_FAKE_HOSTS what its host names mean.
 */
import {
  chmodSync,
  chownSync,
  constants,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { arch, constants as os, cpus, freemem, hostname, release, totalmem, uptime } from "node:os";
import { dirname, join, normalize, relative, resolve } from "node:path";

const VERSION = "5.4.2";
const NEVER = "0001-01-01T00:00:00Z";

// ---------------------------------------------------------------------------------------------------------------
// Command line
// ---------------------------------------------------------------------------------------------------------------

interface Settings {
  root: string;
  socket: string;
  /** Seconds without a request after which the service ends; 0 means never. */
  idleSeconds: number;
}

/** Ends the program with one line: what was wrong on the command line. */
function usage(problem: string): never {
  console.error(
    `Error: ${problem} (usage: engine.ts --root DIR system service [--time=SECONDS] unix:///path/to/socket)`,
  );
  process.exit(2);
}

function parseArguments(argv: string[]): Settings {
  // Podman's own global flags that a caller may pass; only --root means something here.
  const known = [
    "root",
    "runroot",
    "tmpdir",
    "log-level",
    "storage-driver",
    "events-backend",
    "cgroup-manager",
  ];
  const flags = new Map<string, string>();
  const words: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] as string;
    const [, name, inline] = /^(?:--([a-z-]+)|-t)(?:=(.*))?$/s.exec(word) ?? [];
    if (word === "--version" || word === "-v") {
      console.log(`podman version ${VERSION}+fake`);
      process.exit(0);
    }
    if (!word.startsWith("-")) words.push(word);
    else if (word.startsWith("-t") || name === "time" || (name && known.includes(name))) {
      const value = inline ?? argv[++i];
      if (value === undefined) usage(`flag needs an argument: ${word}`);
      flags.set(name ?? "time", value);
    } else usage(`unknown flag: ${word}`);
  }
  const [command, verb, uri, ...rest] = words;
  if (command !== "system" || verb !== "service") {
    usage(`unrecognized command "${words.join(" ")}", only "system service" is served`);
  }
  if (rest.length > 0) usage(`accepts at most 1 arg, received ${words.length - 2}`);
  if (!uri?.startsWith("unix://")) usage(`the service needs a unix:// address, got "${uri ?? ""}"`);
  const root = flags.get("root");
  if (!root) usage("--root is required");
  const idleSeconds = Number(flags.get("time") ?? 5);
  if (!Number.isInteger(idleSeconds) || idleSeconds < 0) {
    usage(`invalid argument "${flags.get("time")}" for "--time": not a number of seconds`);
  }
  return { root: resolve(root), socket: resolve(uri.slice("unix://".length)), idleSeconds };
}

// ---------------------------------------------------------------------------------------------------------------
// Errors and time
// ---------------------------------------------------------------------------------------------------------------

/** An answer other than success, in Podman's form. */
class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
  ) {
    super(message);
  }
}

const fail = (status: number, reason: string, message: string): never => {
  throw new ApiError(status, reason, message ? `${message}: ${reason}` : reason);
};
const improper = (message: string, status = 500): never => fail(status, "container state improper", message);

let lastInstant = 0n;

/** Nanoseconds since the epoch; every call later than the one before, so that two runs never end at one instant. */
function instant(): bigint {
  const now = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6));
  lastInstant = now > lastInstant ? now : lastInstant + 1n;
  return lastInstant;
}

/** RFC 3339 with nanoseconds, as Go prints it. */
function timestamp(nanoseconds = instant()): string {
  const whole = new Date(Number(nanoseconds / 1_000_000n)).toISOString().slice(0, 19);
  return `${whole}.${String(nanoseconds % 1_000_000_000n).padStart(9, "0")}Z`;
}

/** Seconds since the epoch, as the container list gives times; Go's zero time is this odd number. */
const unixSeconds = (time: string): number =>
  time === NEVER ? -62135596800 : Math.floor(Date.parse(time) / 1000);

const randomHex = (length: number): string =>
  Buffer.from(crypto.getRandomValues(new Uint8Array(Math.ceil(length / 2))))
    .toString("hex")
    .slice(0, length);

// ---------------------------------------------------------------------------------------------------------------
// State on disk: whatever the engine answers with survives its own death
// ---------------------------------------------------------------------------------------------------------------

const settings = parseArguments(process.argv.slice(2));
// Everything below the root is the engine's alone; a container's process gets the usual umask back.
process.umask(0o077);
const folder = (...parts: string[]): string => join(settings.root, ...parts);
for (const part of ["", "containers", "images", "secrets", "volumes"])
  mkdirSync(folder(part), { recursive: true });
chmodSync(settings.root, 0o700);

function writeAtomically(file: string, content: string): void {
  writeFileSync(`${file}.new`, content);
  renameSync(`${file}.new`, file);
}

/** Named things in one JSON file. */
class Collection<Item> extends Map<string, Item> {
  private file = "";

  static load<Item>(kind: string): Collection<Item> {
    const collection = new Collection<Item>();
    const file = folder(`${kind}.json`);
    if (existsSync(file)) {
      for (const [key, item] of JSON.parse(readFileSync(file, "utf8")) as [string, Item][])
        collection.set(key, item);
    }
    collection.file = file;
    return collection;
  }

  save(): void {
    writeAtomically(this.file, JSON.stringify([...this]));
  }
}

/** Removes a tree, folders without write permission included. */
function removeTree(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true });
  } catch {
    const open = (directory: string): void => {
      chmodSync(directory, 0o700);
      for (const entry of readdirSync(directory, { withFileTypes: true })) {
        if (entry.isDirectory()) open(join(directory, entry.name));
      }
    };
    open(path);
    rmSync(path, { recursive: true, force: true });
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Events
// ---------------------------------------------------------------------------------------------------------------

interface EngineEvent {
  status: string;
  id?: string;
  from?: string;
  Type: string;
  Action: string;
  Actor: { ID: string; Attributes: Record<string, string> };
  scope: string;
  time: number;
  timeNano: number;
}

const eventLog = folder("events.jsonl");
const eventListeners = new Set<(event: EngineEvent) => void>();

function emit(
  type: string,
  action: string,
  id: string,
  attributes: Record<string, string>,
  from?: string,
): void {
  const now = instant();
  const event: EngineEvent = {
    status: action,
    ...(type === "container" && { id, from }),
    Type: type,
    Action: action,
    Actor: { ID: id, Attributes: { image: "", podId: "", ...attributes } },
    scope: "local",
    time: Number(now / 1_000_000_000n),
    timeNano: Number(now),
  };
  writeFileSync(eventLog, eventLine(event), { flag: "a" });
  for (const listener of eventListeners) listener(event);
}

type Filters = Record<string, string[]>;

function parseFilters(query: URLSearchParams): Filters {
  const text = query.get("filters");
  if (!text) return {};
  try {
    const filters: Filters = {};
    for (const [key, values] of Object.entries(JSON.parse(text) as Record<string, unknown>)) {
      // Docker's older form is a map of value to true.
      filters[key] = Array.isArray(values) ? values.map(String) : Object.keys(values as object);
    }
    return filters;
  } catch {
    return fail(500, "failed to parse parameters", `invalid filters ${text}`);
  }
}

const matchesLabels = (labels: Record<string, string>, wanted: string[]): boolean =>
  wanted.every((want) => {
    const [key, value] = [
      want.split("=", 1)[0] as string,
      want.includes("=") ? want.slice(want.indexOf("=") + 1) : null,
    ];
    return key in labels && (value === null || labels[key] === value);
  });

/** By name or by the beginning of the id, among events of one type. */
const eventOf =
  (type: string) =>
  ({ Type, Actor }: EngineEvent, wanted: string[]): boolean =>
    Type === type && wanted.some((want) => Actor.Attributes.name === want || Actor.ID.startsWith(want));

const EVENT_FILTERS: Record<string, (event: EngineEvent, wanted: string[]) => boolean> = {
  type: ({ Type }, wanted) => wanted.includes(Type),
  event: ({ Action }, wanted) => wanted.includes(Action) || (Action === "die" && wanted.includes("died")),
  label: ({ Actor }, wanted) => matchesLabels(Actor.Attributes, wanted),
  container: eventOf("container"),
  image: eventOf("image"),
  network: eventOf("network"),
  volume: eventOf("volume"),
};

const matchesEvent = (event: EngineEvent, filters: Filters): boolean =>
  Object.entries(filters).every(([key, wanted]) => EVENT_FILTERS[key]?.(event, wanted));

/** A moment from the query: seconds since the epoch, or RFC 3339. */
function moment(text: string | null): number | null {
  if (!text) return null;
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) * 1000 : Date.parse(text);
  return Number.isNaN(value) ? fail(400, "invalid argument", `failed to parse time "${text}"`) : value;
}

const eventLine = (event: EngineEvent): string => `${JSON.stringify(event)}\n`;

function eventStream(query: URLSearchParams, signal: AbortSignal): Response {
  const filters = parseFilters(query);
  for (const key of Object.keys(filters))
    if (!(key in EVENT_FILTERS)) fail(500, `${key} is an invalid filter`, "");
  const follow = query.get("stream") !== "false" && !query.get("until");
  const [since, until] = [moment(query.get("since")), moment(query.get("until"))];
  const past = since === null && follow ? [] : readEvents(since ?? 0, until ?? Infinity);
  const chosen = past.filter((event) => matchesEvent(event, filters));
  if (!follow) return new Response(chosen.map(eventLine).join(""), { headers: json });
  let listener: ((event: EngineEvent) => void) | undefined;
  const close = (): void => void (listener && eventListeners.delete(listener));
  signal.addEventListener("abort", close);
  const body = new ReadableStream<string>({
    start(controller) {
      // Bun sends the headers with the first bytes, and a client waits for them before it lists what exists. A blank
      // line is nothing to every JSON reader.
      controller.enqueue(`\n${chosen.map(eventLine).join("")}`);
      listener = (event) => matchesEvent(event, filters) && controller.enqueue(eventLine(event));
      eventListeners.add(listener);
    },
    cancel: close,
  });
  return new Response(body, { headers: json });
}

function readEvents(since: number, until: number): EngineEvent[] {
  if (!existsSync(eventLog)) return [];
  return readFileSync(eventLog, "utf8")
    .split("\n")
    .filter(Boolean)
    .map((text) => JSON.parse(text) as EngineEvent)
    .filter(({ timeNano }) => timeNano / 1e6 >= since && timeNano / 1e6 <= until);
}

// ---------------------------------------------------------------------------------------------------------------
// Images: a tree of files and a little configuration, under every name it was given
// ---------------------------------------------------------------------------------------------------------------

interface ImageConfig {
  User?: string;
  Env?: string[];
  WorkingDir?: string;
  Entrypoint?: string[];
  Cmd?: string[];
  Labels?: Record<string, string>;
}

interface Image {
  id: string;
  names: string[];
  created: string;
  size: number;
  config: ImageConfig;
}

const images = Collection.load<Image>("images");
const imageTree = (image: Image): string => folder("images", image.id);

/** "name" becomes "localhost/name:latest", as Podman stores a name without registry or tag. */
function fullReference(reference: string): string {
  const named = /:[^/]+$/.test(reference) || reference.includes("@") ? reference : `${reference}:latest`;
  const [first] = named.split("/", 1) as [string];
  const hasRegistry = named.includes("/") && (/[.:]/.test(first) || first === "localhost");
  return hasRegistry ? named : `localhost/${named}`;
}

function findImage(reference: string): Image | undefined {
  const id = reference.replace(/^sha256:/, "");
  const name = fullReference(reference);
  return (
    images.get(id) ??
    [...images.values()].find(({ names }) => names.includes(name)) ??
    (/^[0-9a-f]{3,64}$/.test(id) ? [...images.values()].find((image) => image.id.startsWith(id)) : undefined)
  );
}

const imageNotFound = (reference: string): never =>
  fail(404, "image not known", `failed to find image ${reference}: ${reference}`);

const wordList = (text: string): string[] =>
  text.startsWith("[") ? JSON.parse(text) : ["/bin/sh", "-c", text];
const keyAndValue = (text: string): [string, string] => {
  const [, key, value] =
    /^([^=\s]+)(?:=|\s+)(.*)$/s.exec(text) ?? fail(400, "invalid argument", `bad change "${text}"`);
  return [key as string, (value as string).replace(/^"(.*)"$/s, "$1")];
};

/** The instructions of a Dockerfile that `podman import --change` takes. */
function applyChanges(changes: string[]): ImageConfig {
  const config: ImageConfig = {};
  for (const change of changes) {
    const [, instruction = "", value = ""] = /^\s*(\w+)(?:\s+|=)(.*)$/s.exec(change) ?? [];
    switch (instruction.toUpperCase()) {
      case "USER":
        config.User = value;
        break;
      case "WORKDIR":
        config.WorkingDir = value;
        break;
      case "ENV":
        (config.Env ??= []).push(keyAndValue(value).join("="));
        break;
      case "LABEL":
        config.Labels = { ...config.Labels, ...Object.fromEntries([keyAndValue(value)]) };
        break;
      case "ENTRYPOINT":
        config.Entrypoint = wordList(value);
        break;
      case "CMD":
        config.Cmd = wordList(value);
        break;
      default:
        fail(500, "invalid change", `"${change}"`);
    }
  }
  return config;
}

/**
 * Makes a tree usable from anywhere: links stay inside it wherever it is copied to, and its owner can enter every
 * folder. Returns the size of its files.
 */
function settleTree(root: string, directory = root): number {
  let size = 0;
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isSymbolicLink()) {
      const link = readlinkSync(path);
      const inside = join(
        root,
        normalize(join("/", link.startsWith("/") ? "" : relative(root, directory), link)),
      );
      const settled = relative(directory, inside) || ".";
      if (settled !== link) {
        unlinkSync(path);
        symlinkSync(settled, path);
      }
    } else if (entry.isDirectory()) {
      chmodSync(path, (statSync(path).mode & 0o7777) | 0o700);
      size += settleTree(root, path);
    } else size += lstatSync(path).size;
  }
  return size;
}

async function importImage(query: URLSearchParams, request: Request): Promise<Response> {
  const reference = query.get("reference");
  const changes = query.getAll("changes");
  const tar = new Uint8Array(await request.arrayBuffer());
  if (tar.length === 0) fail(500, "unexpected EOF", "import: reading the tarball");
  const id = new Bun.CryptoHasher("sha256").update(tar).update(JSON.stringify(changes)).digest("hex");
  if (!images.has(id)) {
    const config = applyChanges(changes);
    const unpacked = folder("images", `${id}.new`);
    removeTree(unpacked);
    mkdirSync(unpacked, { mode: 0o755 });
    writeFileSync(`${unpacked}.tar`, tar);
    const unpack = Bun.spawn(["tar", "-xpf", `${unpacked}.tar`, "-C", unpacked, "--no-same-owner"], {
      stdout: "ignore",
      stderr: "pipe",
    });
    const [problem, code] = await Promise.all([new Response(unpack.stderr).text(), unpack.exited]);
    rmSync(`${unpacked}.tar`);
    if (code !== 0) {
      removeTree(unpacked);
      fail(500, problem.trim() || `tar exited with ${code}`, "import: unpacking the tarball");
    }
    chmodSync(unpacked, 0o755);
    const size = settleTree(unpacked);
    removeTree(folder("images", id));
    renameSync(unpacked, folder("images", id));
    images.set(id, { id, names: [], created: timestamp(), size, config });
  }
  if (reference) {
    const name = fullReference(reference);
    for (const image of images.values()) image.names = image.names.filter((other) => other !== name);
    images.get(id)?.names.push(name);
    emit("image", "tag", id, { name });
  }
  images.save();
  return answer(200, { Id: `sha256:${id}` });
}

/** Nothing can be fetched here: a pull succeeds if the image is there and its policy is content with that. */
function pullImage(query: URLSearchParams): Response {
  const reference = query.get("reference") ?? "";
  const policy = query.get("policy") || "always";
  if (!["always", "missing", "never", "newer"].includes(policy)) {
    fail(400, `unsupported pull policy "${policy}"`, "");
  }
  const image = findImage(reference);
  if (image && policy !== "always") {
    emit("image", "pull", image.id, { name: reference });
    return answer(200, { images: [image.id], id: image.id });
  }
  const registry = fullReference(reference).split("/", 1)[0];
  const error =
    policy === "never"
      ? `${reference}: image not known`
      : `initializing source docker://${reference}: pinging container registry ${registry}: ` +
        `Get "https://${registry}/v2/": dial tcp: lookup ${registry}: no such host`;
  const trying =
    policy === "never" ? "" : `${JSON.stringify({ stream: `Trying to pull ${reference}...\n` })}\n`;
  emit("image", "pull-error", "", { name: reference, error });
  // Podman streams the progress of a pull, so a failure comes after "200 OK", as the last line.
  return new Response(`${trying}${JSON.stringify({ error })}\n`, { headers: json });
}

const repository = (name: string): string => name.replace(/:[^/]*$/, "");

function inspectImage(reference: string): object {
  const image = findImage(reference) ?? imageNotFound(reference);
  const layer = `sha256:${image.id}`;
  return {
    Id: image.id,
    Digest: layer,
    RepoTags: image.names,
    RepoDigests: image.names.map((name) => `${repository(name)}@${layer}`),
    Parent: "",
    Comment: "imported from tarball",
    Created: image.created,
    Config: image.config,
    Version: "",
    Author: "",
    Architecture: goArchitecture,
    Os: "linux",
    Size: image.size,
    VirtualSize: image.size,
    GraphDriver: { Name: "overlay", Data: { UpperDir: imageTree(image) } },
    RootFS: { Type: "layers", Layers: [layer] },
    Labels: image.config.Labels ?? null,
    Annotations: {},
    ManifestType: "application/vnd.oci.image.manifest.v1+json",
    User: image.config.User ?? "",
    History: [
      {
        created: image.created,
        created_by: "/bin/sh -c #(nop) ADD file in /",
        comment: "imported from tarball",
      },
    ],
    NamesHistory: image.names,
  };
}

function listImages(query: URLSearchParams): object[] {
  const filters = parseFilters(query);
  return [...images.values()]
    .filter(
      (image) =>
        matchesLabels(image.config.Labels ?? {}, filters.label ?? []) &&
        (!filters.reference || filters.reference.some((want) => image.names.includes(fullReference(want)))),
    )
    .map((image) => ({
      Id: image.id,
      ParentId: "",
      RepoTags: image.names,
      RepoDigests: image.names.map((name) => `${repository(name)}@sha256:${image.id}`),
      Created: unixSeconds(image.created),
      Size: image.size,
      SharedSize: 0,
      VirtualSize: image.size,
      Labels: image.config.Labels ?? null,
      Containers: [...containers.values()].filter(({ imageId }) => imageId === image.id).length,
      Arch: goArchitecture,
      Digest: `sha256:${image.id}`,
      History: image.names,
      IsManifestList: false,
      Names: image.names,
      Os: "linux",
    }));
}

async function removeImage(reference: string, query: URLSearchParams): Promise<object> {
  const image = findImage(reference) ?? fail(404, "image not known", reference);
  const byName = image.names.includes(fullReference(reference));
  const untagged = byName ? [fullReference(reference)] : [...image.names];
  const last = untagged.length === image.names.length;
  const users = [...containers.values()].filter(({ imageId }) => imageId === image.id);
  if (last && users.length > 0) {
    if (query.get("force") !== "true") {
      fail(409, "image is in use by a container", `image used by ${users[0]?.id}`);
    }
    for (const user of users) await removeContainer(user, true, 0, false);
  }
  image.names = image.names.filter((name) => !untagged.includes(name));
  for (const name of untagged) emit("image", "untag", image.id, { name });
  if (last) {
    images.delete(image.id);
    removeTree(imageTree(image));
    emit("image", "remove", image.id, { name: untagged[0] ?? "" });
  }
  images.save();
  return { Deleted: last ? [image.id] : null, Untagged: untagged, ExitCode: 0, Errors: [] };
}

// ---------------------------------------------------------------------------------------------------------------
// Volumes, secrets, networks
// ---------------------------------------------------------------------------------------------------------------

const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;

interface Volume {
  name: string;
  created: string;
  driver: string;
  labels: Record<string, string>;
  options: Record<string, string>;
  /** Made for one container and removed with it. */
  anonymous: boolean;
}

const volumes = Collection.load<Volume>("volumes");
const volumeData = (name: string): string => folder("volumes", name, "_data");

interface VolumeRequest {
  Name?: string;
  Driver?: string;
  Label?: Record<string, string>;
  Labels?: Record<string, string>;
  Options?: Record<string, string>;
  IgnoreIfExists?: boolean;
}

function createVolume(wanted: VolumeRequest, anonymous = false): Volume {
  const name = wanted.Name || randomHex(64);
  const existing = volumes.get(name);
  if (existing) {
    return wanted.IgnoreIfExists
      ? existing
      : fail(500, "volume already exists", `volume with name ${name} already exists`);
  }
  if (!NAME.test(name))
    fail(
      500,
      "invalid argument",
      "running volume create option: names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*",
    );
  mkdirSync(folder("volumes", name), { recursive: true });
  mkdirSync(volumeData(name), { recursive: true, mode: 0o755 });
  chmodSync(volumeData(name), 0o755);
  const volume: Volume = {
    name,
    created: timestamp(),
    driver: wanted.Driver || "local",
    labels: { ...wanted.Label, ...wanted.Labels },
    options: wanted.Options ?? {},
    anonymous,
  };
  volumes.set(name, volume);
  volumes.save();
  emit("volume", "create", "", { name });
  return volume;
}

const volumeUsers = (name: string): Container[] =>
  [...containers.values()].filter(({ mounts }) =>
    mounts.some((mount) => mount.type === "volume" && mount.source === name),
  );

const inspectVolume = (volume: Volume): object => ({
  Name: volume.name,
  Driver: volume.driver,
  Mountpoint: volumeData(volume.name),
  CreatedAt: volume.created,
  Labels: volume.labels,
  Scope: "local",
  Options: volume.options,
  ...(volume.anonymous && { Anonymous: true }),
  MountCount: volumeUsers(volume.name).filter(isUp).length,
  NeedsCopyUp: readdirSync(volumeData(volume.name)).length === 0,
  NeedsChown: true,
  LockNumber: 0,
});

const volumeNamed = (name: string): Volume =>
  volumes.get(name) ?? fail(404, "no such volume", `no volume with name "${name}" found`);

async function removeVolume(name: string, force: boolean): Promise<void> {
  volumeNamed(name);
  const users = volumeUsers(name);
  if (users.length > 0) {
    if (!force) {
      const ids = users.map(({ id }) => id).join(", ");
      fail(409, "volume is being used", `volume ${name} is being used by the following container(s): ${ids}`);
    }
    for (const user of users) await removeContainer(user, true, 0, false);
  }
  volumes.delete(name);
  volumes.save();
  removeTree(folder("volumes", name));
  emit("volume", "remove", "", { name });
}

function listVolumes(query: URLSearchParams): object[] {
  const filters = parseFilters(query);
  return [...volumes.values()]
    .filter(
      ({ name, labels }) =>
        matchesLabels(labels, filters.label ?? []) &&
        (filters.name?.some((want) => name.includes(want)) ?? true),
    )
    .map(inspectVolume);
}

interface Secret {
  id: string;
  name: string;
  created: string;
  labels: Record<string, string>;
}

const secrets = Collection.load<Secret>("secrets");
const secretFile = (secret: Secret): string => folder("secrets", secret.id);

const findSecret = (nameOrId: string): Secret | undefined =>
  secrets.get(nameOrId) ?? [...secrets.values()].find(({ id }) => id === nameOrId);
const secretNamed = (nameOrId: string, status = 404): Secret =>
  findSecret(nameOrId) ?? fail(status, "no such secret", `no secret with name or id "${nameOrId}"`);

async function createSecret(query: URLSearchParams, request: Request): Promise<Response> {
  const name = query.get("name") ?? "";
  const value = new Uint8Array(await request.arrayBuffer());
  if (!name) fail(500, "secret name cannot be empty", "");
  const existing = secrets.get(name);
  if (existing && query.get("replace") !== "true") fail(500, "secret name in use", name);
  if (value.length === 0 || value.length >= 512_000) {
    fail(500, "secret data must be larger than 0 and less than 512000 bytes", "");
  }
  if (existing) rmSync(secretFile(existing), { force: true });
  const secret: Secret = {
    id: randomHex(25),
    name,
    created: timestamp(),
    labels: JSON.parse(query.get("labels") || "{}") as Record<string, string>,
  };
  writeFileSync(secretFile(secret), value, { mode: 0o600 });
  secrets.set(name, secret);
  secrets.save();
  return answer(200, { ID: secret.id });
}

/** Never the value: Podman shows it only on `showsecret`, which no driver may need. */
const inspectSecret = (secret: Secret): object => ({
  ID: secret.id,
  CreatedAt: secret.created,
  UpdatedAt: secret.created,
  Spec: {
    Name: secret.name,
    Driver: { Name: "file", Options: { path: folder("secrets") } },
    Labels: secret.labels,
  },
});

function listSecrets(query: URLSearchParams): object[] {
  const wanted = parseFilters(query).name;
  return [...secrets.values()]
    .filter(({ name }) => wanted?.some((want) => name.includes(want)) ?? true)
    .map(inspectSecret);
}

function removeSecret(nameOrId: string): void {
  const secret = secretNamed(nameOrId);
  secrets.delete(secret.name);
  secrets.save();
  rmSync(secretFile(secret), { force: true });
}

interface Network {
  name: string;
  id: string;
  driver: string;
  network_interface: string;
  created: string;
  subnets: { subnet: string; gateway: string }[];
  ipv6_enabled: boolean;
  internal: boolean;
  dns_enabled: boolean;
  labels?: Record<string, string>;
  ipam_options: { driver: string };
}

const networks = Collection.load<Network>("networks");

/** Every network is the host's loopback: that is where a process of a "container" reaches the gateway. */
function createNetwork(wanted: Partial<Network>): Network {
  const name = wanted.name || `podman${networks.size}`;
  if (networks.has(name)) fail(409, "network already exists", `network name ${name} already used`);
  if (!NAME.test(name))
    fail(
      400,
      "invalid argument",
      `network name ${name} invalid: names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*`,
    );
  const network: Network = {
    name,
    id: new Bun.CryptoHasher("sha256").update(name).update(settings.root).digest("hex"),
    driver: wanted.driver || "bridge",
    network_interface: `podman${networks.size}`,
    created: timestamp(),
    subnets: [{ subnet: "127.0.0.0/8", gateway: "127.0.0.1" }],
    ipv6_enabled: wanted.ipv6_enabled ?? false,
    internal: wanted.internal ?? false,
    dns_enabled: wanted.dns_enabled ?? false,
    ...(wanted.labels && Object.keys(wanted.labels).length > 0 && { labels: wanted.labels }),
    ipam_options: { driver: "host-local" },
  };
  networks.set(name, network);
  networks.save();
  emit("network", "create", network.id, { name: "", network: name, driver: network.driver });
  return network;
}

const findNetwork = (nameOrId: string): Network | undefined =>
  networks.get(nameOrId) ??
  [...networks.values()].find(({ id }) => nameOrId.length > 2 && id.startsWith(nameOrId));
const networkNamed = (nameOrId: string, status = 404): Network =>
  findNetwork(nameOrId) ??
  fail(status, "network not found", `unable to find network with name or ID ${nameOrId}`);

const networkUsers = (network: Network): Container[] =>
  [...containers.values()].filter((container) => container.networks.includes(network.name));

const inspectNetwork = (network: Network): object => ({
  ...network,
  containers: Object.fromEntries(
    networkUsers(network)
      .filter(isUp)
      .map(({ id, name }) => [
        id,
        { name, interfaces: { eth0: { subnets: [{ ipnet: "127.0.0.1/8", gateway: "127.0.0.1" }] } } },
      ]),
  ),
});

async function removeNetwork(nameOrId: string, force: boolean): Promise<object> {
  const network = networkNamed(nameOrId);
  if (network.name === "podman") fail(500, "default network podman cannot be removed", "");
  const users = networkUsers(network);
  if (users.length > 0 && !force) {
    fail(
      500,
      "network is being used",
      `"${network.name}" has associated containers with it. Use -f to forcibly delete containers and pods`,
    );
  }
  for (const user of users) await removeContainer(user, true, 0, false);
  networks.delete(network.name);
  networks.save();
  emit("network", "remove", network.id, { name: "", network: network.name, driver: network.driver });
  return [{ Name: network.name, Err: null }];
}

function listNetworks(query: URLSearchParams): Network[] {
  const filters = parseFilters(query);
  return [...networks.values()].filter(
    ({ name, id, labels }) =>
      matchesLabels(labels ?? {}, filters.label ?? []) &&
      (filters.name?.some((want) => new RegExp(want).test(name)) ?? true) &&
      (filters.id?.some((want) => id.startsWith(want)) ?? true),
  );
}

// ---------------------------------------------------------------------------------------------------------------
// Containers: what they are
// ---------------------------------------------------------------------------------------------------------------

interface HealthConfig {
  test?: string[];
  Test?: string[];
  Retries?: number;
  Timeout?: number;
  Interval?: number;
  StartPeriod?: number;
}

/** The part of libpod's SpecGenerator that means something for a process. The rest is kept and reported. */
interface Spec {
  name?: string;
  image?: string;
  entrypoint?: string[];
  command?: string[];
  env?: Record<string, string>;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  hostname?: string;
  user?: string;
  work_dir?: string;
  terminal?: boolean;
  remove?: boolean;
  stop_timeout?: number;
  stop_signal?: number;
  hostadd?: string[];
  networks?: Record<string, object>;
  Networks?: Record<string, object>;
  volumes?: { name?: string; dest?: string; Name?: string; Dest?: string; options?: string[] }[];
  image_volumes?: { source: string; destination: string; rw?: boolean }[];
  mounts?: { type?: string; source?: string; destination: string; options?: string[] }[];
  secrets?: { source: string; target?: string; uid?: number; gid?: number; mode?: number }[];
  secret_env?: Record<string, string>;
  portmappings?: { host_port?: number; container_port: number; protocol?: string; host_ip?: string }[];
  resource_limits?: {
    cpu?: { quota?: number; period?: number; shares?: number };
    memory?: { limit?: number; swap?: number };
    pids?: { limit?: number };
  };
  healthconfig?: HealthConfig;
  cap_add?: string[];
  cap_drop?: string[];
  dns_search?: string[];
  dns_option?: string[];
  no_new_privileges?: boolean;
  seccomp_profile_path?: string;
}

interface Mount {
  type: "volume" | "bind" | "tmpfs" | "image";
  /** A volume's name, a host path, an image's id. */
  source: string;
  destination: string;
  options: string[];
  writable: boolean;
}

/** What starting a container put in its place inside the rootfs, to be taken away when it stops. */
interface Mounted {
  target: string;
  link: boolean;
  /** Where the file or folder that the mount hides was moved to. */
  hidden: string | null;
}

type Status = "created" | "running" | "paused" | "stopping" | "exited" | "removing";

interface Container {
  id: string;
  name: string;
  spec: Spec;
  imageId: string;
  imageName: string;
  networks: string[];
  mounts: Mount[];
  ports: { host_ip: string; container_port: number; host_port: number; range: number; protocol: string }[];
  created: string;
  status: Status;
  mounted: Mounted[];
  pid: number;
  /** The process that waits for the container's own, and how to tell it from a later one with the same pid. */
  monitor: { pid: number; birth: string } | null;
  startedAt: string;
  finishedAt: string;
  exitCode: number;
  error: string;
  stoppedByUser: boolean;
  health: { Status: string; FailingStreak: number; Log: HealthResult[] | null } | null;
}

interface HealthResult {
  Start: string;
  End: string;
  ExitCode: number;
  Output: string;
}

const containers = new Map<string, Container>();
/** What is under way for a container; not part of its state on disk. */
const starting = new Map<string, Promise<void>>();
const exits = new Map<string, Promise<void>>();

const containerFolder = (container: Container, ...parts: string[]): string =>
  folder("containers", container.id, ...parts);
const rootfs = (container: Container): string => containerFolder(container, "rootfs");
const save = (container: Container): void =>
  writeAtomically(containerFolder(container, "state.json"), JSON.stringify(container));
const isUp = ({ status }: Container): boolean => ["running", "paused", "stopping"].includes(status);

function findContainer(nameOrId: string): Container | undefined {
  const exact = containers.get(nameOrId) ?? [...containers.values()].find(({ name }) => name === nameOrId);
  return (
    exact ??
    (nameOrId.length >= 3 ? [...containers.values()].find(({ id }) => id.startsWith(nameOrId)) : undefined)
  );
}

const containerNamed = (nameOrId: string): Container =>
  findContainer(nameOrId) ??
  fail(404, "no such container", `no container with name or ID "${nameOrId}" found`);

function emitContainer(container: Container, action: string, extra: Record<string, string> = {}): void {
  const attributes = { ...container.spec.labels, image: container.imageName, name: container.name, ...extra };
  emit("container", action, container.id, attributes, container.imageName);
}

// ---------------------------------------------------------------------------------------------------------------
// Containers: create and remove
// ---------------------------------------------------------------------------------------------------------------

function planMounts(spec: Spec): Mount[] {
  const mounts: Mount[] = [];
  for (const { type = "bind", source = "", destination, options = [] } of spec.mounts ?? []) {
    if (type !== "bind" && type !== "tmpfs") fail(500, "invalid mount type", `mount type "${type}"`);
    if (type === "bind" && !existsSync(source)) fail(500, "no such file or directory", `statfs ${source}`);
    const path = type === "bind" ? realpathSync(source) : source;
    mounts.push({
      type: type as "bind" | "tmpfs",
      source: path,
      destination,
      options,
      writable: !options.includes("ro"),
    });
  }
  for (const volume of spec.volumes ?? []) {
    const [source, destination, options] = [
      volume.name ?? volume.Name,
      volume.dest ?? volume.Dest ?? "",
      volume.options ?? [],
    ];
    mounts.push({
      type: "volume",
      source: source ?? "",
      destination,
      options,
      writable: !options.includes("ro"),
    });
  }
  for (const { source, destination, rw = false } of spec.image_volumes ?? []) {
    const image = findImage(source) ?? fail(500, "image not known", `no such image: ${source}`);
    mounts.push({ type: "image", source: image.id, destination, options: [], writable: rw });
  }
  const seen = new Set<string>();
  for (const mount of mounts) {
    mount.destination = normalize(`/${mount.destination}`).replace(/(.)\/$/, "$1");
    if (mount.destination === "/") fail(500, "invalid argument", `invalid mount destination "/"`);
    if (seen.has(mount.destination)) {
      fail(
        500,
        "duplicate mount destination",
        `conflict in specified volumes - multiple volumes at "${mount.destination}"`,
      );
    }
    seen.add(mount.destination);
  }
  return mounts.toSorted((a, b) => a.destination.length - b.destination.length);
}

/** A port nobody holds right now. Nothing will listen on it: the container's process is on the host's own network. */
function freePort(): number {
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  probe.stop(true);
  return probe.port;
}

function createContainer(spec: Spec): Response {
  const image = spec.image ? findImage(spec.image) : fail(500, "must provide image or rootfs", "");
  if (!image) return fail(404, "image not known", `no such image: ${spec.image}`);
  const id = randomHex(64);
  const name = spec.name || `container_${id.slice(0, 12)}`;
  if (!NAME.test(name))
    fail(
      500,
      "invalid argument",
      "running container create option: names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*",
    );
  const holder = [...containers.values()].find((other) => other.name === name);
  if (holder) {
    fail(
      500,
      "that name is already in use",
      `creating container storage: the container name "${name}" is already in use by ${holder.id}. ` +
        "You have to remove that container to be able to reuse that name",
    );
  }
  const wanted =
    spec.secrets?.map((secret) => ({ secret: secretNamed(secret.source, 500), ...secret })) ?? [];
  for (const source of Object.values(spec.secret_env ?? {})) secretNamed(source, 500);
  const attached = Object.keys({ ...spec.networks, ...spec.Networks });
  const joined = (attached.length > 0 ? attached : ["podman"]).map(
    (network) => networkNamed(network, 500).name,
  );
  const mounts = planMounts(spec);
  const entrypoint = spec.entrypoint ?? image.config.Entrypoint ?? [];
  const command = spec.command ?? (spec.entrypoint ? [] : (image.config.Cmd ?? []));
  if (entrypoint.length + command.length === 0) {
    fail(500, "no command or entrypoint provided, and no CMD or ENTRYPOINT from image", "");
  }

  const container: Container = {
    id,
    name,
    spec: { ...spec, entrypoint, command, labels: { ...image.config.Labels, ...spec.labels } },
    imageId: image.id,
    imageName: image.names[0] ?? image.id,
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
  mkdirSync(containerFolder(container));
  try {
    cpSync(imageTree(image), rootfs(container), {
      recursive: true,
      verbatimSymlinks: true,
      mode: constants.COPYFILE_FICLONE,
    });
    chmodSync(rootfs(container), 0o755);
    for (const { secret, target, uid = 0, gid = 0, mode = 0o444 } of wanted) {
      const path = join(
        rootfs(container),
        normalize(target?.startsWith("/") ? target : `/run/secrets/${target ?? secret.name}`),
      );
      mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
      writeFileSync(path, readFileSync(secretFile(secret)), { mode });
      if (process.getuid?.() === 0) chownSync(path, uid, gid);
    }
    for (const mount of mounts) {
      if (mount.type === "volume" && !volumes.has(mount.source)) {
        mount.source = createVolume({ Name: mount.source }, mount.source === "").name;
      }
    }
    save(container);
  } catch (error) {
    removeTree(containerFolder(container));
    throw error;
  }
  containers.set(id, container);
  emitContainer(container, "create");
  return answer(201, { Id: id, Warnings: [] });
}

async function removeContainer(
  container: Container,
  force: boolean,
  timeoutSeconds: number | null,
  withVolumes: boolean,
): Promise<void> {
  await starting.get(container.id)?.catch(() => {});
  if (isUp(container)) {
    if (!force) {
      improper(
        `cannot remove container ${container.id} as it is ${container.status} - ` +
          "running or paused containers cannot be removed without force",
      );
    }
    if (container.status === "paused") resume(container);
    await stopContainer(container, timeoutSeconds, true);
  }
  // Another request may have removed it while this one waited for the process to end.
  if (!containers.has(container.id)) return;
  container.status = "removing";
  save(container);
  removeTree(containerFolder(container));
  containers.delete(container.id);
  const ran = container.startedAt !== NEVER;
  emitContainer(container, "remove", ran ? { containerExitCode: String(container.exitCode) } : {});
  for (const mount of withVolumes ? container.mounts : []) {
    if (mount.type === "volume" && volumes.get(mount.source)?.anonymous)
      await removeVolume(mount.source, false);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Containers: their files, in place while they run
// ---------------------------------------------------------------------------------------------------------------

function mountAll(container: Container): void {
  for (const [index, mount] of container.mounts.entries()) {
    const path = join(rootfs(container), mount.destination);
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    const target = join(realpathSync(dirname(path)), path.slice(dirname(path).length + 1));
    const hidden = hide(container, target, index);
    const link = mount.type !== "tmpfs" && !(mount.type === "image" && mount.writable);
    container.mounted.push({ target, link, hidden });
    save(container);
    if (mount.type === "tmpfs") mkdirSync(target, { mode: 0o1777 });
    else if (mount.type === "bind") symlinkSync(mount.source, target);
    else if (mount.type === "volume") {
      const data = volumeData(mount.source);
      // A volume that is used for the first time starts with what the image has in its place.
      if (hidden && readdirSync(data).length === 0 && statSync(hidden).isDirectory()) {
        cpSync(hidden, data, { recursive: true, verbatimSymlinks: true });
      }
      symlinkSync(data, target);
    } else if (link) symlinkSync(folder("images", mount.source), target);
    else cpSync(folder("images", mount.source), target, { recursive: true, verbatimSymlinks: true });
  }
}

/** Moves aside what lies where a mount goes. */
function hide(container: Container, target: string, index: number): string | null {
  const found = lstatSync(target, { throwIfNoEntry: false });
  if (!found) return null;
  if (found.isDirectory() && readdirSync(target).length === 0) {
    rmdirSync(target);
    return null;
  }
  const hidden = containerFolder(container, `hidden-${index}`);
  renameSync(target, hidden);
  return hidden;
}

function unmountAll(container: Container): void {
  for (const { target, link, hidden } of container.mounted.toReversed()) {
    if (link) rmSync(target, { force: true });
    else removeTree(target);
    if (hidden && existsSync(hidden)) renameSync(hidden, target);
    else if (existsSync(dirname(target))) mkdirSync(target, { recursive: true, mode: 0o755 });
  }
  container.mounted = [];
}

// ---------------------------------------------------------------------------------------------------------------
// Containers: their processes
// ---------------------------------------------------------------------------------------------------------------

/**
 * What conmon is to Podman: it waits for the container's process and keeps the exit code, whether or not the engine
 * lives. It leads the container's session, keeps its own signals away from the container's process, and ends with it.
 */
const MONITOR = `
umask 022
trap : HUP INT TERM
folder=$1 directory=$2; shift 2
cd "$directory"
/bin/sh -c 'echo $$ >"$0" && exec "$@"' "$folder/pid" "$@" >>"$folder/stdout.log" 2>>"$folder/stderr.log" </dev/null
echo $? >"$folder/exit.new"
mv "$folder/exit.new" "$folder/exit"`;

/** When a process was born, in the system's own words; "" if there is none (a zombie is none). */
function birth(pid: number): string {
  if (process.platform !== "linux") {
    return Bun.spawnSync(["ps", "-o", "lstart=", "-p", String(pid)])
      .stdout.toString()
      .trim();
  }
  try {
    const fields = statFields(pid);
    return fields[0] === "Z" ? "" : (fields[19] ?? "");
  } catch {
    return "";
  }
}

/** /proc/PID/stat from the third field on: state, ppid, pgrp, session, … */
function statFields(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

interface Process {
  pid: number;
  parent: number;
  session: number;
  marked: boolean;
}

/** Every process that this user can see, and whether its environment carries the mark. */
function processes(mark: string): Process[] {
  const found: Process[] = [];
  if (process.platform === "linux") {
    for (const entry of readdirSync("/proc")) {
      if (!/^\d+$/.test(entry)) continue;
      try {
        const [state, parent, , session] = statFields(Number(entry));
        if (state === "Z") continue;
        let marked = false;
        try {
          marked = `\0${readFileSync(`/proc/${entry}/environ`, "latin1")}`.includes(`\0${mark}\0`);
        } catch {
          // Another user's process: not ours.
        }
        found.push({ pid: Number(entry), parent: Number(parent), session: Number(session), marked });
      } catch {
        // It ended while we looked.
      }
    }
    return found;
  }
  const list = Bun.spawnSync(["ps", "-axEww", "-o", "pid=,ppid=,pgid=,stat=,command="]).stdout.toString();
  for (const line of list.split("\n")) {
    const [, pid, parent, group, state, command] =
      /^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line) ?? [];
    if (!pid || !command || state?.startsWith("Z")) continue;
    found.push({
      pid: Number(pid),
      parent: Number(parent),
      session: Number(group),
      marked: `${command} `.includes(` ${mark} `),
    });
  }
  return found;
}

/**
 * The pids of a container: the monitor's session, every process that carries the container's mark wherever it went,
 * and their descendants. Not the monitor itself.
 */
function members(container: Container): number[] {
  const all = processes(`OPENSHELL_FAKE_ROOT=${rootfs(container)}`);
  const monitor = container.monitor?.pid ?? -1;
  const inside = new Set(
    all.filter(({ session, marked }) => marked || session === monitor).map(({ pid }) => pid),
  );
  for (let grown = true; grown;) {
    const before = inside.size;
    for (const { pid, parent } of all) if (inside.has(parent)) inside.add(pid);
    grown = inside.size > before;
  }
  inside.delete(monitor);
  inside.delete(process.pid);
  return [...inside];
}

/** Signals a process that may be gone already. */
function sendSignal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/**
 * Signals the container's first process. The kernel drops a signal to the first process of a PID namespace that has
 * no handler for it; a plain process would die of it, so ask first.
 */
function signalFirst({ pid }: Container, name: NodeJS.Signals): void {
  if (process.platform === "linux" && name !== "SIGSTOP" && name !== "SIGCONT") {
    const status = existsSync(`/proc/${pid}/status`) ? readFileSync(`/proc/${pid}/status`, "latin1") : "";
    const [, caught = "0"] = /^SigCgt:\s*([0-9a-f]+)$/m.exec(status) ?? [];
    if ((BigInt(`0x${caught}`) & (1n << BigInt(os.signals[name] - 1))) === 0n) return;
  }
  sendSignal(pid, name);
}

/** Ends every process of a container, as the kernel does when a PID namespace loses its first process. */
async function endProcesses(container: Container): Promise<void> {
  const deadline = Date.now() + 5_000;
  for (;;) {
    const left = members(container);
    if (left.length === 0) return;
    for (const pid of left) sendSignal(pid, "SIGKILL");
    if (Date.now() > deadline) {
      console.error(`container ${container.id}: processes ${left.join(", ")} outlived SIGKILL for 5 s`);
      return;
    }
    await Bun.sleep(2);
  }
}

const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** The environment as inspect shows it. */
function environment(container: Container): Record<string, string> {
  const { spec } = container;
  const ofImage = (images.get(container.imageId)?.config.Env ?? []).map((pair) => [
    pair.split("=", 1)[0] as string,
    pair.slice(pair.indexOf("=") + 1),
  ]);
  return {
    PATH: DEFAULT_PATH,
    ...(spec.terminal && { TERM: "xterm" }),
    container: "podman",
    HOSTNAME: hostnameOf(container),
    HOME: "/root",
    ...(Object.fromEntries(ofImage) as Record<string, string>),
    ...spec.env,
  };
}

const hostnameOf = ({ id, spec }: Container): string => spec.hostname || id.slice(0, 12);
const workingDirectory = ({ spec, imageId }: Container): string =>
  spec.work_dir || images.get(imageId)?.config.WorkingDir || "/";

/** "name=address,…" of the container's extra hosts; the host itself is the loopback address. */
const hosts = ({ spec }: Container): string =>
  (spec.hostadd ?? [])
    .map((entry) => {
      const [names, address] = [entry.slice(0, entry.indexOf(":")), entry.slice(entry.indexOf(":") + 1)];
      return names.split(";").map((name) => `${name}=${address === "host-gateway" ? "127.0.0.1" : address}`);
    })
    .flat()
    .join(",");

const executable = (path: string): "yes" | "no" | "missing" => {
  const file = statSync(path, { throwIfNoEntry: false });
  if (!file) return "missing";
  return file.isFile() && file.mode & 0o111 ? "yes" : "no";
};

/** The program's file on the host, found as the container's kernel and PATH would. */
function resolveProgram(container: Container, program: string): string {
  const candidates = program.includes("/")
    ? [join(rootfs(container), resolve("/", workingDirectory(container), program))]
    : (environment(container).PATH ?? "").split(":").map((part) => join(rootfs(container), part, program));
  for (const path of candidates) if (executable(path) === "yes") return path;
  if (program.includes("/") && executable(candidates[0] as string) === "no") {
    return fail(500, "OCI permission denied", "crun: open executable: Permission denied");
  }
  const where = program.includes("/") ? "" : " in $PATH";
  return fail(
    500,
    "OCI runtime attempted to invoke a command that was not found",
    `crun: executable file \`${program}\` not found${where}: No such file or directory`,
  );
}

async function startContainer(container: Container): Promise<boolean> {
  const underWay = starting.get(container.id);
  if (underWay) {
    await underWay;
    return false;
  }
  if (container.status === "running") return false;
  if (container.status === "paused" || container.status === "stopping" || container.status === "removing") {
    improper(`container ${container.id} must be in Created or Stopped state to be started`);
  }
  const start = launch(container).finally(() => starting.delete(container.id));
  starting.set(container.id, start);
  await start;
  return true;
}

async function launch(container: Container): Promise<void> {
  const { spec } = container;
  const file = (name: string): string => containerFolder(container, name);
  for (const name of ["pid", "exit", "exit.new"]) rmSync(file(name), { force: true });
  try {
    mountAll(container);
    const [program, ...rest] = [...(spec.entrypoint ?? []), ...(spec.command ?? [])] as [string, ...string[]];
    const directory = join(rootfs(container), workingDirectory(container));
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    const command = [resolveProgram(container, program), ...rest];
    const secretEnvironment = Object.fromEntries(
      Object.entries(spec.secret_env ?? {}).map(([key, source]) => [
        key,
        readFileSync(secretFile(secretNamed(source, 500)), "utf8"),
      ]),
    );
    const child = Bun.spawn(
      ["/bin/sh", "-c", MONITOR, "monitor", containerFolder(container), directory, ...command],
      {
        env: {
          ...environment(container),
          ...secretEnvironment,
          OPENSHELL_FAKE_ROOT: rootfs(container),
          OPENSHELL_FAKE_HOSTS: hosts(container),
        },
        stdio: ["ignore", "ignore", "ignore"],
        detached: true,
      },
    );
    child.unref();
    container.monitor = { pid: child.pid, birth: birth(child.pid) };
    save(container);
    const deadline = Date.now() + 5_000;
    let pid = 0;
    while (!(pid > 0) && child.exitCode === null) {
      if (Date.now() > deadline) fail(500, "timeout", `conmon ${child.pid} reported no process within 5 s`);
      await Bun.sleep(1);
      pid = existsSync(file("pid")) ? Number(readFileSync(file("pid"), "utf8")) : 0;
    }
    Object.assign(container, {
      status: "running",
      pid: pid || Number(readFileSync(file("pid"), "utf8")),
      startedAt: timestamp(),
      exitCode: 0,
      error: "",
      health: healthTest(container) ? { Status: "starting", FailingStreak: 0, Log: null } : null,
    });
    save(container);
    emitContainer(container, "init");
    emitContainer(container, "start");
    exits.set(
      container.id,
      child.exited.then(() => finish(container)),
    );
  } catch (error) {
    await endProcesses(container);
    unmountAll(container);
    container.monitor = null;
    container.error = error instanceof Error ? error.message : String(error);
    save(container);
    throw error;
  }
}

/** The container's process has ended: end the rest, note how it went, take its mounts away. */
async function finish(container: Container): Promise<void> {
  await endProcesses(container);
  const file = containerFolder(container, "exit");
  const [code, at] = existsSync(file)
    ? [Number(readFileSync(file, "utf8")), BigInt(Math.round(statSync(file).mtimeMs * 1e6))]
    : [137, instant()];
  unmountAll(container);
  Object.assign(container, {
    status: "exited",
    pid: 0,
    monitor: null,
    exitCode: code,
    finishedAt: timestamp(at > lastInstant ? (lastInstant = at) : instant()),
  });
  save(container);
  exits.delete(container.id);
  emitContainer(container, "die", { containerExitCode: String(code), exitCode: String(code) });
  if (!removing.has(container.id)) emitContainer(container, "cleanup");
}

const removing = new Set<string>();

/** Stops a container: its stop signal, then SIGKILL for everything in it. False if it was not running. */
async function stopContainer(
  container: Container,
  timeoutSeconds: number | null,
  toRemove = false,
): Promise<boolean> {
  await starting.get(container.id)?.catch(() => {});
  if (container.status === "created" || container.status === "exited") return false;
  if (container.status === "paused") {
    improper(`container ${container.id} is running or paused, refusing to clean up`);
  }
  if (toRemove) removing.add(container.id);
  const exit = exits.get(container.id) ?? Promise.resolve();
  try {
    if (container.status === "running") {
      container.status = "stopping";
      container.stoppedByUser = true;
      save(container);
      const seconds = timeoutSeconds ?? container.spec.stop_timeout ?? 10;
      if (seconds > 0) signalFirst(container, stopSignal(container));
      const expired = await Promise.race([
        exit.then(() => false),
        Bun.sleep(seconds * 1000).then(() => true),
      ]);
      if (expired) await endProcesses(container);
    }
    await exit;
  } finally {
    removing.delete(container.id);
  }
  return true;
}

const signalName = (number: number): NodeJS.Signals | undefined =>
  Object.entries(os.signals).find(([, value]) => value === number)?.[0] as NodeJS.Signals | undefined;
const stopSignal = ({ spec }: Container): NodeJS.Signals => signalName(spec.stop_signal ?? 15) ?? "SIGTERM";

function parseSignal(text: string): NodeJS.Signals {
  const name = /^\d+$/.test(text)
    ? signalName(Number(text))
    : (`SIG${text.toUpperCase().replace(/^SIG/, "")}` as NodeJS.Signals);
  return name && name in os.signals ? name : fail(500, `invalid signal: ${text}`, "");
}

async function killContainer(container: Container, name: NodeJS.Signals): Promise<void> {
  if (!isUp(container)) {
    improper(`can only kill running containers. ${container.id} is in state ${container.status}`, 409);
  }
  emitContainer(container, "kill");
  if (name === "SIGKILL") {
    await endProcesses(container);
    await exits.get(container.id);
  } else signalFirst(container, name);
}

function pause(container: Container): void {
  if (container.status === "paused") improper(`"${container.id}" is already paused`);
  if (container.status !== "running") improper(`"${container.status}" is not running, can't pause`);
  for (const pid of members(container)) sendSignal(pid, "SIGSTOP");
  container.status = "paused";
  save(container);
  emitContainer(container, "pause");
}

function resume(container: Container): void {
  if (container.status !== "paused") improper(`"${container.id}" is not paused, can't unpause`);
  for (const pid of members(container)) sendSignal(pid, "SIGCONT");
  container.status = "running";
  save(container);
  emitContainer(container, "unpause");
}

async function waitContainer(container: Container, conditions: string[]): Promise<string> {
  const wanted = new Set(conditions.length > 0 ? conditions : ["stopped"]);
  const reached = (): boolean => {
    if (!containers.has(container.id)) return true;
    const { status } = container;
    return (
      wanted.has(status) ||
      (status === "exited" && wanted.has("stopped")) ||
      (status === "created" && wanted.has("configured"))
    );
  };
  while (!reached()) await Bun.sleep(10);
  return `${container.exitCode}\n`;
}

// ---------------------------------------------------------------------------------------------------------------
// Health: checked when asked, as Podman does on a host without systemd, whose timers would ask
// ---------------------------------------------------------------------------------------------------------------

function healthTest({ spec }: Container): string[] | null {
  const test = spec.healthconfig?.test ?? spec.healthconfig?.Test ?? [];
  return test.length === 0 || test[0] === "NONE" ? null : test;
}

async function checkHealth(container: Container): Promise<object> {
  const test = healthTest(container) ?? fail(409, "has no defined healthcheck", `container ${container.id}`);
  if (container.status !== "running" || !container.health) {
    improper(`container ${container.id} is not running`, 409);
  }
  const [kind, ...words] = test;
  const command =
    kind === "CMD-SHELL"
      ? ["/bin/sh", "-c", words.join(" ")]
      : kind === "CMD"
        ? words
        : ["/bin/sh", "-c", test.join(" ")];
  if (kind === "CMD") command[0] = resolveProgram(container, command[0] ?? "");
  const start = timestamp();
  const check = Bun.spawn(command, {
    cwd: rootfs(container),
    env: {
      ...environment(container),
      OPENSHELL_FAKE_ROOT: rootfs(container),
      OPENSHELL_FAKE_HOSTS: hosts(container),
    },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
    timeout: Math.max(1, (container.spec.healthconfig?.Timeout ?? 30e9) / 1e6),
    killSignal: "SIGKILL",
  });
  const [Output, ExitCode] = await Promise.all([new Response(check.stdout).text(), check.exited]);
  const health = container.health as NonNullable<Container["health"]>;
  const before = health.Status;
  const inStartPeriod =
    Date.now() - Date.parse(container.startedAt) < (container.spec.healthconfig?.StartPeriod ?? 0) / 1e6;
  if (ExitCode === 0) Object.assign(health, { Status: "healthy", FailingStreak: 0 });
  else if (before !== "starting" || !inStartPeriod) {
    health.FailingStreak++;
    if (health.FailingStreak >= (container.spec.healthconfig?.Retries || 3)) health.Status = "unhealthy";
  }
  health.Log = [
    ...(health.Log ?? []),
    { Start: start, End: timestamp(), ExitCode, Output: Output.slice(0, 500) },
  ].slice(-5);
  save(container);
  emitContainer(container, "health_status", {
    health_status: health.Status,
    health_failing_streak: String(health.FailingStreak),
  });
  return health;
}

// ---------------------------------------------------------------------------------------------------------------
// Logs: frames of stdout and stderr, each in its own order
// ---------------------------------------------------------------------------------------------------------------

function logs(container: Container, query: URLSearchParams, signal: AbortSignal): Response {
  const wants = (name: string): boolean => ["true", "1"].includes(query.get(name) ?? "");
  const streams = [
    { type: 1, file: containerFolder(container, "stdout.log"), wanted: wants("stdout"), read: 0 },
    { type: 2, file: containerFolder(container, "stderr.log"), wanted: wants("stderr"), read: 0 },
  ].filter(({ wanted }) => wanted);
  if (streams.length === 0) fail(400, "must specify at least one of stdout or stderr", "");
  const tail = /^\d+$/.test(query.get("tail") ?? "") ? Number(query.get("tail")) : Infinity;

  const frames = (most: number): Buffer => {
    const parts: Buffer[] = [];
    for (const stream of streams) {
      const all = existsSync(stream.file) ? readFileSync(stream.file) : Buffer.alloc(0);
      const lines = all
        .subarray(stream.read)
        .toString("latin1")
        .split(/(?<=\n)/);
      stream.read = all.length;
      for (const line of most === Infinity ? lines : lines.filter(Boolean).slice(-most)) {
        if (line === "") continue;
        const header = Buffer.alloc(8);
        header.writeUInt8(stream.type, 0);
        header.writeUInt32BE(line.length, 4);
        parts.push(header, Buffer.from(line, "latin1"));
      }
    }
    return Buffer.concat(parts);
  };
  const headers = { "content-type": "application/octet-stream" };
  if (!wants("follow")) return new Response(frames(tail), { headers });
  const body = new ReadableStream<Uint8Array>({
    async start(controller) {
      controller.enqueue(frames(tail));
      while (isUp(container) && !signal.aborted) {
        await Bun.sleep(25);
        const more = frames(Infinity);
        if (more.length > 0 && !signal.aborted) controller.enqueue(more);
      }
      if (!signal.aborted) controller.close();
    },
  });
  return new Response(body, { headers });
}

// ---------------------------------------------------------------------------------------------------------------
// Containers: as the API shows them
// ---------------------------------------------------------------------------------------------------------------

const portKey = ({ container_port, protocol }: Container["ports"][number]): string =>
  `${container_port}/${protocol}`;

function listEntry(container: Container): object {
  const { spec, status } = container;
  return {
    AutoRemove: spec.remove ?? false,
    Command: spec.command ?? [],
    Created: container.created,
    CreatedAt: "",
    CIDFile: "",
    Exited: status === "exited",
    ExitedAt: unixSeconds(container.finishedAt),
    ExitCode: container.exitCode,
    ExposedPorts: null,
    Id: container.id,
    Image: container.imageName,
    ImageID: container.imageId,
    IsInfra: false,
    Labels: spec.labels ?? {},
    Mounts: container.mounts.map(({ destination }) => destination),
    Names: [container.name],
    Namespaces: {},
    Networks: container.networks,
    Pid: container.pid,
    Pod: "",
    PodName: "",
    Ports: container.ports,
    Restarts: 0,
    Size: null,
    StartedAt: unixSeconds(container.startedAt),
    State: status,
    Status: healthTest(container) ? (container.health?.Status ?? "starting") : "",
  };
}

const CONTAINER_FILTERS: Record<string, (container: Container, wanted: string[]) => boolean> = {
  label: ({ spec }, wanted) => matchesLabels(spec.labels ?? {}, wanted),
  "label!": ({ spec }, wanted) => !matchesLabels(spec.labels ?? {}, wanted),
  name: ({ name }, wanted) => wanted.some((want) => new RegExp(want).test(name)),
  id: ({ id }, wanted) => wanted.some((want) => id.startsWith(want)),
  status: ({ status }, wanted) => wanted.includes(status),
  exited: ({ status, exitCode }, wanted) => status === "exited" && wanted.includes(String(exitCode)),
  network: (container, wanted) =>
    wanted.some((want) => container.networks.includes(findNetwork(want)?.name ?? want)),
  volume: ({ mounts }, wanted) =>
    mounts.some(({ source, destination }) => wanted.includes(source) || wanted.includes(destination)),
  ancestor: ({ imageId }, wanted) => wanted.some((want) => findImage(want)?.id === imageId),
  health: ({ health }, wanted) => wanted.includes(health?.Status ?? "none"),
};

function listContainers(query: URLSearchParams): object[] {
  const filters = parseFilters(query);
  for (const key of Object.keys(filters))
    if (!(key in CONTAINER_FILTERS)) fail(500, `${key} is an invalid filter`, "");
  const all = flag(query, "all") || "status" in filters;
  const limit = Number(query.get("limit") ?? 0);
  return [...containers.values()]
    .filter((container) => all || container.status === "running")
    .filter((container) =>
      Object.entries(filters).every(([key, wanted]) => CONTAINER_FILTERS[key]?.(container, wanted)),
    )
    .toSorted((a, b) => (a.created < b.created ? -1 : 1))
    .slice(limit > 0 ? -limit : 0)
    .map(listEntry);
}

const DEFAULT_CAPABILITIES = [
  "CHOWN",
  "DAC_OVERRIDE",
  "FOWNER",
  "FSETID",
  "KILL",
  "NET_BIND_SERVICE",
  "SETFCAP",
  "SETGID",
  "SETPCAP",
  "SETUID",
  "SYS_CHROOT",
];

const bare = (name: string): string => name.replace(/^CAP_/, "");

function capabilities({ spec }: Container): string[] {
  const dropped = new Set((spec.cap_drop ?? []).map(bare));
  const kept = DEFAULT_CAPABILITIES.filter((name) => !dropped.has(name));
  return [...new Set([...kept, ...(spec.cap_add ?? []).map(bare)])].map((name) => `CAP_${name}`).toSorted();
}

function inspectMount(mount: Mount): object {
  const common = { Destination: mount.destination, Mode: "", RW: mount.writable };
  if (mount.type === "volume") {
    const Source = volumeData(mount.source);
    return {
      Type: "volume",
      Name: mount.source,
      Source,
      Driver: "local",
      Options: ["nosuid", "nodev", "rbind"],
      Propagation: "rprivate",
      ...common,
    };
  }
  const Source = mount.type === "image" ? (images.get(mount.source)?.names[0] ?? mount.source) : mount.source;
  return {
    Type: mount.type,
    Source,
    Driver: "",
    Options: mount.options,
    Propagation: mount.type === "bind" ? "rprivate" : "",
    ...common,
  };
}

function inspectContainer(container: Container): object {
  const { spec, status } = container;
  const caps = capabilities(container);
  const limits = spec.resource_limits ?? {};
  const period = limits.cpu?.period ?? 0;
  const quota = limits.cpu?.quota ?? 0;
  const memory = limits.memory?.limit ?? 0;
  const bindings = Object.fromEntries(
    container.ports.map((port) => [
      portKey(port),
      [{ HostIp: port.host_ip || "0.0.0.0", HostPort: String(port.host_port) }],
    ]),
  );
  const running = isUp(container);
  return {
    Id: container.id,
    Created: container.created,
    Path: [...(spec.entrypoint ?? []), ...(spec.command ?? [])][0] ?? "",
    Args: [...(spec.entrypoint ?? []), ...(spec.command ?? [])].slice(1),
    State: {
      OciVersion: "1.2.0",
      Status: status,
      Running: status === "running" || status === "stopping",
      Paused: status === "paused",
      Restarting: false,
      OOMKilled: false,
      Dead: false,
      Pid: container.pid,
      ...(running && { ConmonPid: container.monitor?.pid ?? 0 }),
      ExitCode: container.exitCode,
      Error: container.error,
      StartedAt: container.startedAt,
      FinishedAt: container.finishedAt,
      ...(container.health && { Health: container.health }),
      ...(running && { CgroupPath: `/libpod_parent/libpod-${container.id}` }),
      CheckpointedAt: NEVER,
      RestoredAt: NEVER,
      ...(container.stoppedByUser && { StoppedByUser: true }),
    },
    Image: container.imageId,
    ImageDigest: `sha256:${container.imageId}`,
    ImageName: container.imageName,
    Rootfs: "",
    Pod: "",
    ResolvConfPath: "",
    HostnamePath: "",
    HostsPath: "",
    StaticDir: containerFolder(container),
    OCIRuntime: "crun",
    ConmonPidFile: "",
    PidFile: containerFolder(container, "pid"),
    Name: container.name,
    RestartCount: 0,
    Driver: "overlay",
    MountLabel: "",
    ProcessLabel: "",
    AppArmorProfile: "",
    EffectiveCaps: caps,
    BoundingCaps: caps,
    ExecIDs: [],
    GraphDriver: {
      Name: "overlay",
      Data: { LowerDir: folder("images", container.imageId), MergedDir: rootfs(container) },
    },
    Mounts: container.mounts.filter(({ type }) => type !== "tmpfs").map(inspectMount),
    Dependencies: [],
    NetworkSettings: {
      EndpointID: "",
      Gateway: "",
      IPAddress: "",
      IPPrefixLen: 0,
      IPv6Gateway: "",
      GlobalIPv6Address: "",
      GlobalIPv6PrefixLen: 0,
      MacAddress: "",
      Bridge: "",
      SandboxID: "",
      HairpinMode: false,
      LinkLocalIPv6Address: "",
      LinkLocalIPv6PrefixLen: 0,
      Ports: bindings,
      SandboxKey: "",
      Networks: Object.fromEntries(
        container.networks.map((name) => [
          name,
          {
            EndpointID: "",
            Gateway: running ? "127.0.0.1" : "",
            IPAddress: running ? "127.0.0.1" : "",
            IPPrefixLen: running ? 8 : 0,
            IPv6Gateway: "",
            GlobalIPv6Address: "",
            GlobalIPv6PrefixLen: 0,
            MacAddress: "",
            NetworkID: networks.get(name)?.id ?? "",
            DriverOpts: null,
            IPAMConfig: null,
            Links: null,
            Aliases: [container.id.slice(0, 12)],
          },
        ]),
      ),
    },
    Namespace: "",
    IsInfra: false,
    IsService: false,
    KubeExitCodePropagation: "invalid",
    lockNumber: 0,
    Config: {
      Hostname: hostnameOf(container),
      Domainname: "",
      User: spec.user ?? "",
      AttachStdin: false,
      AttachStdout: false,
      AttachStderr: false,
      Tty: spec.terminal ?? false,
      OpenStdin: false,
      StdinOnce: false,
      Env: Object.entries(environment(container)).map(([key, value]) => `${key}=${value}`),
      Cmd: spec.command ?? [],
      Image: container.imageName,
      Volumes: null,
      WorkingDir: workingDirectory(container),
      Entrypoint: spec.entrypoint ?? [],
      OnBuild: null,
      Labels: spec.labels ?? {},
      Annotations: spec.annotations ?? null,
      StopSignal: stopSignal(container),
      ...(healthTest(container) && {
        Healthcheck: { ...spec.healthconfig, Test: healthTest(container), test: undefined },
      }),
      HealthcheckOnFailureAction: "none",
      Umask: "0022",
      Secrets: (spec.secrets ?? []).map(({ source, uid = 0, gid = 0, mode = 0o444 }) => ({
        Name: source,
        ID: findSecret(source)?.id ?? "",
        UID: uid,
        GID: gid,
        Mode: mode,
      })),
      Timeout: 0,
      StopTimeout: spec.stop_timeout ?? 10,
      Passwd: true,
      ExposedPorts: Object.fromEntries(container.ports.map((port) => [portKey(port), {}])),
    },
    HostConfig: {
      Binds: container.mounts
        .filter(({ type }) => type === "volume" || type === "bind")
        .map(
          ({ source, destination, writable }) =>
            `${source}:${destination}:${writable ? "rw" : "ro"},rprivate,rbind`,
        ),
      CgroupManager: "cgroupfs",
      CgroupMode: "private",
      ContainerIDFile: "",
      LogConfig: {
        Type: "k8s-file",
        Config: null,
        Path: containerFolder(container, "stdout.log"),
        Tag: "",
        Size: "0B",
      },
      NetworkMode: "bridge",
      PortBindings: bindings,
      RestartPolicy: { Name: "no", MaximumRetryCount: 0 },
      AutoRemove: spec.remove ?? false,
      CapAdd: (spec.cap_add ?? []).map((name) => `CAP_${bare(name)}`),
      CapDrop: (spec.cap_drop ?? []).map((name) => `CAP_${bare(name)}`),
      Dns: [],
      DnsOptions: spec.dns_option ?? [],
      DnsSearch: spec.dns_search ?? [],
      ExtraHosts: spec.hostadd ?? [],
      GroupAdd: [],
      IpcMode: "shareable",
      Cgroups: "default",
      PidMode: "private",
      Privileged: false,
      PublishAllPorts: false,
      ReadonlyRootfs: false,
      SecurityOpt: [
        ...(spec.no_new_privileges ? ["no-new-privileges"] : []),
        ...(spec.seccomp_profile_path ? [`seccomp=${spec.seccomp_profile_path}`] : []),
      ],
      Tmpfs: Object.fromEntries(
        container.mounts
          .filter(({ type }) => type === "tmpfs")
          .map(({ destination, options }) => [destination, options.join(",")]),
      ),
      UTSMode: "private",
      UsernsMode: "",
      ShmSize: 65536000,
      Runtime: "oci",
      CpuShares: limits.cpu?.shares ?? 0,
      Memory: memory,
      MemorySwap: limits.memory?.swap ?? memory * 2,
      NanoCpus: period > 0 ? Math.round((quota / period) * 1e9) : 0,
      CpuPeriod: period,
      CpuQuota: quota,
      // Where Podman looks; a "PidsLimit" beside "cpu" and "memory" means nothing to it.
      PidsLimit: limits.pids?.limit ?? 0,
      Devices: [],
      Ulimits: [],
    },
    UseImageHosts: false,
    UseImageHostname: false,
  };
}

// ---------------------------------------------------------------------------------------------------------------
// The engine itself
// ---------------------------------------------------------------------------------------------------------------

const goArchitecture = arch() === "x64" ? "amd64" : arch();

function info(): object {
  const count = (...states: Status[]): number =>
    [...containers.values()].filter(({ status }) => states.includes(status)).length;
  return {
    host: {
      arch: goArchitecture,
      buildahVersion: "1.39.3",
      cgroupManager: "cgroupfs",
      cgroupVersion: "v2",
      cgroupControllers: [],
      conmon: { package: "fake", path: "/bin/sh", version: "fake" },
      cpus: cpus().length,
      databaseBackend: "fake",
      distribution: { distribution: "fake", version: VERSION },
      eventLogger: "file",
      freeLocks: 2048,
      hostname: hostname(),
      idMappings: { gidmap: null, uidmap: null },
      kernel: release(),
      logDriver: "k8s-file",
      memFree: freemem(),
      memTotal: totalmem(),
      networkBackend: "netavark",
      networkBackendInfo: { backend: "netavark", version: "fake", package: "fake", path: "", dns: {} },
      ociRuntime: { name: "crun", package: "fake", path: "", version: "fake" },
      os: "linux",
      remoteSocket: { path: `unix://${settings.socket}`, exists: true },
      rootlessNetworkCmd: "pasta",
      serviceIsRemote: false,
      security: {
        apparmorEnabled: false,
        capabilities: "",
        rootless: false,
        seccompEnabled: false,
        seccompProfilePath: "",
        selinuxEnabled: false,
      },
      swapFree: 0,
      swapTotal: 0,
      uptime: `${Math.round(uptime())}s`,
      variant: "",
      linkmode: "dynamic",
    },
    store: {
      configFile: "",
      containerStore: {
        number: containers.size,
        paused: count("paused"),
        running: count("running", "stopping"),
        stopped: count("created", "exited"),
      },
      graphDriverName: "overlay",
      graphOptions: {},
      graphRoot: settings.root,
      graphStatus: {},
      imageStore: { number: images.size },
      runRoot: settings.root,
      volumePath: folder("volumes"),
      transientStore: false,
    },
    registries: {},
    plugins: { volume: ["local"], network: ["bridge"], log: ["k8s-file"], authorization: null },
    version: versionFields(),
  };
}

const versionFields = (): object => ({
  APIVersion: VERSION,
  Version: `${VERSION}+fake`,
  GoVersion: "",
  GitCommit: "",
  BuiltTime: "",
  Built: 0,
  BuildOrigin: "fake",
  OsArch: `linux/${goArchitecture}`,
  Os: "linux",
});

const version = (): object => ({
  Platform: { Name: `linux/${goArchitecture}/fake` },
  Components: [
    {
      Name: "Podman Engine",
      Version: `${VERSION}+fake`,
      Details: {
        APIVersion: VERSION,
        Arch: goArchitecture,
        Experimental: "false",
        KernelVersion: release(),
        MinAPIVersion: "4.0.0",
        Os: "linux",
      },
    },
  ],
  Version: `${VERSION}+fake`,
  ApiVersion: "1.41",
  MinAPIVersion: "1.24",
  GitCommit: "",
  GoVersion: "",
  Os: "linux",
  Arch: goArchitecture,
  KernelVersion: release(),
});

// ---------------------------------------------------------------------------------------------------------------
// HTTP
// ---------------------------------------------------------------------------------------------------------------

const json = { "content-type": "application/json" };
const answer = (status: number, body: unknown): Response =>
  new Response(`${JSON.stringify(body)}\n`, { status, headers: json });
const empty = (status: number): Response => new Response(null, { status });

interface Call {
  /** The parts of the path that the route leaves open, decoded. */
  name: string;
  query: URLSearchParams;
  request: Request;
}

async function jsonBody<Type>({ request }: Call): Promise<Type> {
  const text = await request.text();
  try {
    return JSON.parse(text) as Type;
  } catch {
    return fail(500, text === "" ? "EOF" : "invalid character in JSON", "decode()");
  }
}

const flag = (query: URLSearchParams, name: string): boolean => ["true", "1"].includes(query.get(name) ?? "");

/** A time-out in seconds, under the names that the API has for it. */
function timeout(query: URLSearchParams): number | null {
  const text = query.get("timeout") ?? query.get("t");
  if (text === null || text === "") return null;
  return /^\d+$/.test(text)
    ? Number(text)
    : fail(400, "invalid argument", `failed to parse timeout "${text}"`);
}

type Handler = (call: Call) => Response | Promise<Response>;

const exists = (found: unknown, reason: string): Response => (found ? empty(204) : fail(404, reason, ""));

/** Method, path with `*` for a name, and what it does. The first match counts. */
const routes: [method: string, path: string, handler: Handler][] = [
  ["GET", "/_ping", () => new Response("OK", { headers: { "content-type": "text/plain; charset=utf-8" } })],
  ["HEAD", "/_ping", () => empty(200)],
  ["GET", "/info", () => answer(200, info())],
  ["GET", "/version", () => answer(200, version())],
  ["GET", "/events", ({ query, request }) => eventStream(query, request.signal)],

  ["POST", "/images/import", ({ query, request }) => importImage(query, request)],
  ["POST", "/images/pull", ({ query }) => pullImage(query)],
  ["GET", "/images/json", ({ query }) => answer(200, listImages(query))],
  ["GET", "/images/*/json", ({ name }) => answer(200, inspectImage(name))],
  ["GET", "/images/*/exists", ({ name }) => exists(findImage(name), `failed to find image ${name}`)],
  ["DELETE", "/images/*", async ({ name, query }) => answer(200, await removeImage(name, query))],

  ["POST", "/volumes/create", async (call) => answer(201, inspectVolume(createVolume(await jsonBody(call))))],
  ["GET", "/volumes/json", ({ query }) => answer(200, listVolumes(query))],
  [
    "GET",
    "/volumes/*/json",
    ({ name }) => answer(200, inspectVolume(volumes.get(name) ?? fail(404, "no such volume", ""))),
  ],
  ["GET", "/volumes/*/exists", ({ name }) => exists(volumes.get(name), "no such volume")],
  [
    "DELETE",
    "/volumes/*",
    async ({ name, query }) => (await removeVolume(name, flag(query, "force")), empty(204)),
  ],

  ["POST", "/secrets/create", ({ query, request }) => createSecret(query, request)],
  ["GET", "/secrets/json", ({ query }) => answer(200, listSecrets(query))],
  ["GET", "/secrets/*/json", ({ name }) => answer(200, inspectSecret(secretNamed(name)))],
  ["GET", "/secrets/*/exists", ({ name }) => exists(findSecret(name), "no such secret")],
  ["DELETE", "/secrets/*", ({ name }) => (removeSecret(name), empty(204))],

  ["POST", "/networks/create", async (call) => answer(200, createNetwork(await jsonBody(call)))],
  ["GET", "/networks/json", ({ query }) => answer(200, listNetworks(query))],
  [
    "GET",
    "/networks/*/json",
    ({ name }) => answer(200, inspectNetwork(findNetwork(name) ?? fail(404, "network not found", ""))),
  ],
  ["GET", "/networks/*/exists", ({ name }) => exists(findNetwork(name), "network not found")],
  [
    "DELETE",
    "/networks/*",
    async ({ name, query }) => answer(200, await removeNetwork(name, flag(query, "force"))),
  ],

  ["POST", "/containers/create", async (call) => createContainer(await jsonBody<Spec>(call))],
  ["GET", "/containers/json", ({ query }) => answer(200, listContainers(query))],
  ["GET", "/containers/*/json", ({ name }) => answer(200, inspectContainer(containerNamed(name)))],
  [
    "GET",
    "/containers/*/exists",
    ({ name }) =>
      exists(findContainer(name), `no container with name or ID "${name}" found: no such container`),
  ],
  [
    "GET",
    "/containers/*/logs",
    ({ name, query, request }) => logs(containerNamed(name), query, request.signal),
  ],
  [
    "GET",
    "/containers/*/healthcheck",
    async ({ name }) => answer(200, await checkHealth(containerNamed(name))),
  ],
  [
    "POST",
    "/containers/*/start",
    async ({ name }) => empty((await startContainer(containerNamed(name))) ? 204 : 304),
  ],
  [
    "POST",
    "/containers/*/stop",
    async ({ name, query }) => empty((await stopContainer(containerNamed(name), timeout(query))) ? 204 : 304),
  ],
  ["POST", "/containers/*/restart", restart],
  ["POST", "/containers/*/kill", kill],
  ["POST", "/containers/*/pause", ({ name }) => (pause(containerNamed(name)), empty(204))],
  ["POST", "/containers/*/unpause", ({ name }) => (resume(containerNamed(name)), empty(204))],
  [
    "POST",
    "/containers/*/wait",
    async ({ name, query }) =>
      new Response(await waitContainer(containerNamed(name), query.getAll("condition"))),
  ],
  ["DELETE", "/containers/*", remove],
];

async function restart({ name, query }: Call): Promise<Response> {
  const container = containerNamed(name);
  await stopContainer(container, timeout(query));
  await startContainer(container);
  return empty(204);
}

async function kill({ name, query }: Call): Promise<Response> {
  const wanted = parseSignal(query.get("signal") || "KILL");
  await killContainer(containerNamed(name), wanted);
  return empty(204);
}

async function remove({ name, query }: Call): Promise<Response> {
  const container = findContainer(name);
  if (container) {
    const withVolumes = flag(query, "volumes") || flag(query, "v");
    await removeContainer(container, flag(query, "force"), timeout(query), withVolumes);
  } else if (!flag(query, "ignore"))
    fail(404, "no such container", `no container with ID or name "${name}" found`);
  return empty(204);
}

const patterns = routes.map(([method, path, handler]) => ({
  method,
  pattern: new RegExp(`^${path.replace("*", "(.+)")}$`),
  handler,
}));

async function serve(request: Request): Promise<Response> {
  const { pathname, searchParams } = new URL(request.url);
  // Any version that Podman has had, with or without the libpod part where Docker's API has the same call.
  const path = pathname.replace(/^\/v\d+\.\d+(\.\d+)?(?=\/)/, "").replace(/^\/libpod(?=\/)/, "");
  try {
    for (const { method, pattern, handler } of patterns) {
      const found = request.method === method ? pattern.exec(path) : null;
      if (found)
        return await handler({ name: decodeURIComponent(found[1] ?? ""), query: searchParams, request });
    }
    return new Response("Not Found\n", {
      status: 404,
      headers: { "content-type": "text/plain; charset=utf-8" },
    });
  } catch (error) {
    const known = error instanceof ApiError ? error : null;
    const message = error instanceof Error ? error.message : String(error);
    if (!known)
      console.error(`${request.method} ${pathname}: ${error instanceof Error ? error.stack : message}`);
    return answer(known?.status ?? 500, {
      cause: known?.reason ?? message,
      message,
      response: known?.status ?? 500,
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Start and end
// ---------------------------------------------------------------------------------------------------------------

/** Waits for a process that is not our child. */
async function ended(one: Container["monitor"]): Promise<void> {
  const alive = (): boolean => one !== null && birth(one.pid) === one.birth;
  while (alive()) await Bun.sleep(50);
}

/** Takes over what an earlier engine on this root left: running containers go on, others are settled. */
async function adopt(id: string): Promise<void> {
  const file = folder("containers", id, "state.json");
  if (!existsSync(file)) return removeTree(folder("containers", id));
  const container = JSON.parse(readFileSync(file, "utf8")) as Container;
  if (container.status === "removing") return removeTree(folder("containers", id));
  containers.set(id, container);
  const { monitor } = container;
  if (isUp(container)) {
    if (container.status === "stopping") container.status = "running";
    exits.set(
      id,
      ended(monitor).then(() => finish(container)),
    );
  } else if (monitor) {
    // The engine died while it started this container: nobody was told that it runs, so it does not.
    await endProcesses(container);
    unmountAll(container);
    container.monitor = null;
    save(container);
  }
}

async function main(): Promise<void> {
  if (!networks.has("podman")) createNetwork({ name: "podman" });
  for (const id of readdirSync(folder("containers"))) await adopt(id);
  if (lstatSync(settings.socket, { throwIfNoEntry: false })?.isSocket()) unlinkSync(settings.socket);
  // A stop or an event stream may be silent for longer than Bun's 10 s; the types know this only for TCP.
  const patient: object = { idleTimeout: 0 };
  // Renamed once it listens: whoever sees the socket can connect to it.
  const bound = join(dirname(settings.socket), `.${process.pid}`);
  let busy = 0;
  let lastRequest = Date.now();
  const server = Bun.serve({
    unix: bound,
    ...patient,
    maxRequestBodySize: 16 * 2 ** 30,
    async fetch(request) {
      busy++;
      try {
        const response = await serve(request);
        response.headers.set("Api-Version", "1.41");
        response.headers.set("Libpod-Api-Version", VERSION);
        response.headers.set("Libpod-Buildah-Version", "1.39.3");
        response.headers.set("Server", `Libpod/${VERSION} (linux)`);
        return response;
      } finally {
        busy--;
        lastRequest = Date.now();
      }
    },
  });
  renameSync(bound, settings.socket);
  const end = (): void => {
    void server.stop(true);
    rmSync(settings.socket, { force: true });
    process.exit(0);
  };
  process.on("SIGTERM", end);
  process.on("SIGINT", end);
  if (settings.idleSeconds > 0) {
    setInterval(() => busy === 0 && Date.now() - lastRequest > settings.idleSeconds * 1000 && end(), 200);
  }
}

await main();
