-- Writes one batch: check first, write last (`Reign::judge` is the same rule in Rust).
-- KEYS: meta, records, blobs, and, when the batch was staged, four hashes: puts, deletes, blob puts, blob deletes.
-- ARGV: epoch, seq, owner, holder, ttl in ms, digest, '1' to replace, schema, how many puts, deletes,
-- blob puts, blob deletes there are, about, installation; then, unless staged: deletes, puts, blob deletes, blob puts.
local epoch, seq, owner, holder = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ttl, digest, replace, schema = tonumber(ARGV[5]), ARGV[6], ARGV[7] == '1', ARGV[8]
local staged = #KEYS > 3

local meta = read_meta()
local refusal = deposed(meta, epoch, owner)
if refusal then
  return refusal
end
local same_reign = meta.epoch == epoch
if same_reign and meta.seq == seq + 1 and meta.last == digest then
  call('HSET', KEYS[1], 'until', text(now() + ttl), 'ttl', text(ttl))
  return {'done', text(meta.seq)}
end
local fits
if replace then
  fits = meta.seq <= seq
else
  fits = same_reign and meta.seq == seq
end
if not fits then
  return {'lost', text(meta.seq)}
end
refusal = foreign()
if refusal then
  return refusal
end
if staged then
  for i = 1, 4 do
    if call('HLEN', KEYS[3 + i]) ~= tonumber(ARGV[8 + i]) then
      return {'unstaged'}
    end
  end
end

local position = 15

-- Gives the next `count` arguments to a command, in portions that fit Lua's stack.
local function write(command, key, count)
  local last = position + count - 1
  while position <= last do
    local stop = math.min(position + 999, last)
    call(command, key, unpack(ARGV, position, stop))
    position = stop + 1
  end
end

-- Calls `act` with portions of a staged hash: keys and values in turn.
local function each_portion(stage, act)
  local cursor = '0'
  repeat
    local reply = call('HSCAN', stage, cursor, 'COUNT', 64)
    cursor = reply[1]
    for first = 1, #reply[2], 1000 do
      act(reply[2], first, math.min(first + 999, #reply[2]))
    end
  until cursor == '0'
end

local function move_puts(stage, target)
  each_portion(stage, function(list, first, last)
    call('HSET', target, unpack(list, first, last))
  end)
end

local function move_deletes(stage, target)
  each_portion(stage, function(list, first, last)
    local keys = {}
    for i = first, last, 2 do
      keys[#keys + 1] = list[i]
    end
    call('HDEL', target, unpack(keys))
  end)
end

if replace then
  call('UNLINK', KEYS[2])
end
if staged then
  move_deletes(KEYS[5], KEYS[2])
  move_puts(KEYS[4], KEYS[2])
  move_deletes(KEYS[7], KEYS[3])
  move_puts(KEYS[6], KEYS[3])
  call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
else
  write('HDEL', KEYS[2], tonumber(ARGV[10]))
  write('HSET', KEYS[2], tonumber(ARGV[9]) * 2)
  write('HDEL', KEYS[3], tonumber(ARGV[12]))
  write('HSET', KEYS[3], tonumber(ARGV[11]) * 2)
end
call('HSET', KEYS[1], 'epoch', text(epoch), 'owner', owner, 'holder', holder, 'about', ARGV[13], 'seq', text(seq + 1),
  'last', digest, 'until', text(now() + ttl), 'ttl', text(ttl), 'schema', schema,
  'installation', ARGV[14])
return {'done', text(seq + 1)}
