// SPDX-License-Identifier: Apache-2.0

/** Volumes, images, bind mounts and tmpfs: planned when a container is made, in their places while it runs. */
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { basename, dirname, join, normalize } from "node:path";
import { type Container, type Mount, rootfs, type Spec } from "./container.ts";
import { fail } from "./http.ts";
import type { Images } from "./images.ts";
import { removeTree } from "./state.ts";

const COPY = { recursive: true, verbatimSymlinks: true };

/** The mounts of a spec, outer ones first. The paths of volumes are not known yet. */
export function planMounts(spec: Spec, images: Images): Mount[] {
  const mounts = [
    ...(spec.mounts ?? []).map(planMount),
    ...(spec.volumes ?? []).map(({ name, Name = name, dest, Dest = dest, options = [] }): Mount => ({
      type: "volume",
      source: Name || fail(500, "not served by this fake engine", "anonymous volume"),
      path: "",
      destination: Dest ?? "",
      options,
      writable: !options.includes("ro"),
    })),
    ...(spec.image_volumes ?? []).map(({ source, destination, rw = false }): Mount => {
      const image = images.find(source) ?? fail(500, "image not known", `no such image: ${source}`);
      return { type: "image", source, path: images.tree(image), destination, options: [], writable: rw };
    }),
  ];
  const seen = new Set<string>();
  for (const mount of mounts) {
    mount.destination = normalize(`/${mount.destination}`).replace(/(.)\/$/, "$1");
    if (mount.destination === "/") fail(500, "invalid argument", `invalid mount destination "/"`);
    if (seen.has(mount.destination)) {
      const conflict = `conflict in specified volumes - multiple volumes at "${mount.destination}"`;
      fail(500, "duplicate mount destination", conflict);
    }
    seen.add(mount.destination);
  }
  return mounts.toSorted((a, b) => a.destination.length - b.destination.length);
}

function planMount({
  type = "bind",
  source = "",
  destination,
  options = [],
}: NonNullable<Spec["mounts"]>[0]): Mount {
  if (type !== "bind" && type !== "tmpfs") fail(500, "invalid mount type", `mount type "${type}"`);
  if (type === "bind" && !existsSync(source)) fail(500, "no such file or directory", `statfs ${source}`);
  const path = type === "bind" ? realpathSync(source) : "";
  return {
    type: type as "bind" | "tmpfs",
    source,
    path,
    destination,
    options,
    writable: !options.includes("ro"),
  };
}

/** Puts every mount in its place. `container.mounted` says what is to be taken away; `save` keeps it after each. */
export function mountAll(container: Container, save: () => void): void {
  for (const [index, { type, path, destination, writable }] of container.mounts.entries()) {
    const place = join(rootfs(container), destination);
    mkdirSync(dirname(place), { recursive: true, mode: 0o755 });
    const target = join(realpathSync(dirname(place)), basename(place));
    const hidden = hide(target, join(container.folder, `hidden-${index}`));
    const link = type !== "tmpfs" && !(type === "image" && writable);
    container.mounted.push({ target, link, hidden });
    save();
    // A volume that is used for the first time starts with what the image has in its place.
    if (type === "volume" && hidden && readdirSync(path).length === 0 && statSync(hidden).isDirectory()) {
      cpSync(hidden, path, COPY);
    }
    if (link) symlinkSync(path, target);
    else if (type === "tmpfs") mkdirSync(target, { mode: 0o1777 });
    else cpSync(path, target, COPY);
  }
}

/** Moves what lies where a mount goes to `aside`. Returns where it is then, if there was anything. */
function hide(target: string, aside: string): string | null {
  const found = lstatSync(target, { throwIfNoEntry: false });
  if (!found) return null;
  if (found.isDirectory() && readdirSync(target).length === 0) {
    rmdirSync(target);
    return null;
  }
  renameSync(target, aside);
  return aside;
}

export function unmountAll(container: Container): void {
  for (const { target, link, hidden } of container.mounted.toReversed()) {
    if (link) rmSync(target, { force: true });
    else removeTree(target);
    if (hidden && existsSync(hidden)) renameSync(hidden, target);
  }
  container.mounted = [];
}
