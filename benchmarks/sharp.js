// sharp beside `engine.py`: the same orders and answers, each size from the original, one thread, no cache.
const path = require('node:path');
const readline = require('node:readline');
const sharp = require('sharp');

sharp.concurrency(1);
sharp.cache(false);

const ENCODERS = {
  jpeg: (image) => image.jpeg({ quality: 80 }),
  webp: (image) => image.webp({ quality: 80, effort: 4 }),
};

async function make({ source, sizes, format, into }) {
  const files = sizes.map((width) => path.join(into, `sharp-${process.hrtime.bigint()}-${width}.${format}`));
  const wall = process.hrtime.bigint();
  const cpu = process.cpuUsage();
  for (const [index, width] of sizes.entries()) {
    await ENCODERS[format](sharp(source).resize(width)).toFile(files[index]);
  }
  const { user, system } = process.cpuUsage(cpu);
  return { cpu_ms: (user + system) / 1000, wall_ms: Number(process.hrtime.bigint() - wall) / 1e6, files };
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await make(JSON.parse(line)))}\n`);
  }
})();
