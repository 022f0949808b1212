// SPDX-License-Identifier: Apache-2.0

/** Images: a tree of files and a little configuration, under every name that it was given. */
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { arch } from "node:os";
import { join, normalize, relative } from "node:path";
import { timestamp } from "./clock.ts";
import type { Events } from "./events.ts";
import { fail, JSON_TYPE } from "./http.ts";
import { type Collection, removeTree, type State } from "./state.ts";

export const GO_ARCHITECTURE = arch() === "x64" ? "amd64" : arch();

export interface ImageConfig {
  User?: string;
  Env?: string[];
  WorkingDir?: string;
  Entrypoint?: string[];
  Cmd?: string[];
}

export interface Image {
  Id: string;
  RepoTags: string[];
  Created: string;
  Size: number;
  Architecture: string;
  Os: "linux";
  Config: ImageConfig;
}

export class Images {
  readonly #all: Collection<Image>;

  constructor(
    private readonly state: State,
    private readonly events: Events,
  ) {
    this.#all = state.collection("images");
  }

  tree({ Id }: Image): string {
    return this.state.path("images", Id);
  }

  find(reference: string): Image | undefined {
    const id = reference.replace(/^sha256:/, "");
    const name = fullReference(reference);
    const all = [...this.#all.values()];
    return (
      this.#all.get(id) ??
      all.find(({ RepoTags }) => RepoTags.includes(name)) ??
      (/^[0-9a-f]{3,64}$/.test(id) ? all.find(({ Id }) => Id.startsWith(id)) : undefined)
    );
  }

  /** As `podman import`: the tar is the image's tree, `changes` its configuration. */
  async import(query: URLSearchParams, tar: Uint8Array): Promise<{ Id: string }> {
    const changes = query.getAll("changes");
    if (tar.length === 0) fail(500, "unexpected EOF", "import: reading the tarball");
    const id = new Bun.CryptoHasher("sha256").update(tar).update(JSON.stringify(changes)).digest("hex");
    const image = this.#all.get(id) ?? {
      Id: id,
      RepoTags: [],
      Created: timestamp(),
      Architecture: GO_ARCHITECTURE,
      Os: "linux",
      Config: configOf(changes),
      Size: await this.#unpack(id, tar),
    };
    const reference = query.get("reference");
    if (reference) {
      const name = fullReference(reference);
      for (const other of this.#all.values()) this.#forget(name, other);
      image.RepoTags.push(name);
      this.events.emit("image", "tag", id, { name });
    }
    this.#all.set(id, image);
    return { Id: `sha256:${id}` };
  }

  #forget(name: string, image: Image): void {
    if (!image.RepoTags.includes(name)) return;
    image.RepoTags = image.RepoTags.filter((tag) => tag !== name);
    this.#all.set(image.Id, image);
  }

  /** Puts the tree in its place, once it is whole. Returns the size of its files. */
  async #unpack(id: string, tar: Uint8Array): Promise<number> {
    const folder = this.state.path("images", `${id}.new`);
    removeTree(folder);
    mkdirSync(folder);
    chmodSync(folder, 0o755);
    writeFileSync(`${folder}.tar`, tar);
    const unpack = Bun.spawn(["tar", "-xpf", `${folder}.tar`, "-C", folder, "--no-same-owner"], {
      stdout: "ignore",
      stderr: "pipe",
    });
    const [problem, code] = await Promise.all([unpack.stderr.text(), unpack.exited]);
    rmSync(`${folder}.tar`);
    if (code !== 0) {
      removeTree(folder);
      fail(500, problem.trim() || `tar exited with ${code}`, "import: unpacking the tarball");
    }
    const size = settle(folder);
    const tree = this.state.path("images", id);
    removeTree(tree);
    renameSync(folder, tree);
    return size;
  }

  /** Nothing can be fetched here: a pull succeeds if the image is there and its policy is content with that. */
  pull(query: URLSearchParams): Response {
    const reference = query.get("reference") ?? "";
    const policy = query.get("policy") || "always";
    if (!["always", "missing", "never", "newer"].includes(policy)) {
      fail(400, `unsupported pull policy "${policy}"`);
    }
    const image = this.find(reference);
    if (image && policy !== "always") return lines({ images: [image.Id], id: image.Id });
    if (policy === "never") return lines({ error: `${reference}: image not known` });
    const registry = fullReference(reference).split("/", 1)[0];
    const error =
      `initializing source docker://${reference}: pinging container registry ${registry}: ` +
      `Get "https://${registry}/v2/": dial tcp: lookup ${registry}: no such host`;
    return lines({ stream: `Trying to pull ${reference}...\n` }, { error });
  }

  inspect(reference: string): object {
    const image =
      this.find(reference) ?? fail(404, "image not known", `failed to find image ${reference}: ${reference}`);
    return { ...image, Digest: `sha256:${image.Id}`, Labels: null };
  }

  /** The names that a removal of `reference` takes from the image: that one, or of an id all. */
  namesTaken(image: Image, reference: string): string[] {
    const name = fullReference(reference);
    return image.RepoTags.includes(name) ? [name] : [...image.RepoTags];
  }

  /** Takes names from an image, which goes with the last; then nothing may use it any more. */
  untag(image: Image, names: string[]): object {
    image.RepoTags = image.RepoTags.filter((name) => !names.includes(name));
    for (const name of names) this.events.emit("image", "untag", image.Id, { name });
    const last = image.RepoTags.length === 0;
    if (!last) this.#all.set(image.Id, image);
    else {
      this.#all.delete(image.Id);
      removeTree(this.tree(image));
      this.events.emit("image", "remove", image.Id, { name: names[0] ?? "" });
    }
    return { Deleted: last ? [image.Id] : null, Untagged: names, ExitCode: 0, Errors: [] };
  }
}

/** Podman streams the progress of a pull, so a failure comes after "200 OK", as the last line. */
const lines = (...reports: object[]): Response =>
  new Response(reports.map((report) => `${JSON.stringify(report)}\n`).join(""), { headers: JSON_TYPE });

/** "name" becomes "localhost/name:latest", as Podman stores a name without registry or tag. */
function fullReference(reference: string): string {
  const named = /:[^/]+$/.test(reference) || reference.includes("@") ? reference : `${reference}:latest`;
  const hasRegistry = /^([^/]*[.:][^/]*|localhost)\//.test(named);
  return hasRegistry ? named : `localhost/${named}`;
}

// Dockerfile instructions, as far as `podman import --change` needs them here

const INSTRUCTIONS: Record<string, (config: ImageConfig, value: string) => void> = {
  USER: (config, value) => void (config.User = value),
  WORKDIR: (config, value) => void (config.WorkingDir = value),
  ENV: (config, value) => void (config.Env ??= []).push(value),
  ENTRYPOINT: (config, value) => void (config.Entrypoint = words(value)),
  CMD: (config, value) => void (config.Cmd = words(value)),
};

const words = (text: string): string[] => (text.startsWith("[") ? JSON.parse(text) : ["/bin/sh", "-c", text]);

function configOf(changes: string[]): ImageConfig {
  const config: ImageConfig = {};
  for (const change of changes) {
    const [, instruction = "", value = ""] = /^\s*(\w+)(?:\s+|=)(.*)$/s.exec(change) ?? [];
    const apply = INSTRUCTIONS[instruction.toUpperCase()] ?? fail(500, "invalid change", `"${change}"`);
    apply(config, value);
  }
  return config;
}

// Trees

/**
 * Makes a tree usable from anywhere: links stay inside it wherever it is copied to, and its owner can enter every
 * folder. Returns the size of its files.
 */
function settle(root: string, folder = root): number {
  let size = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isSymbolicLink()) {
      const link = readlinkSync(path);
      const inside = normalize(join("/", link.startsWith("/") ? "" : relative(root, folder), link));
      const settled = relative(folder, join(root, inside)) || ".";
      if (settled === link) continue;
      unlinkSync(path);
      symlinkSync(settled, path);
    } else if (entry.isDirectory()) {
      chmodSync(path, (statSync(path).mode & 0o7777) | 0o700);
      size += settle(root, path);
    } else size += lstatSync(path).size;
  }
  return size;
}
