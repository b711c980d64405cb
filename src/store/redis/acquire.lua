-- Begins a reign, unless another holder's lease is alive or the store is behind what the caller saw.
-- ARGV: holder, owner, ttl in ms, schema, about, the epoch and seq that the caller saw, the caller's installation and
-- the name that this had before.
local holder, owner, ttl, schema = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local about, seen_epoch, seen_seq = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local installation, former = ARGV[8], ARGV[9]

local refusal = foreign()
if refusal then
  return refusal
end
local meta = read_meta()
if meta.schema and (tonumber(meta.schema) or schema + 1) > schema then
  return {'schema', meta.schema}
end
if meta.installation ~= '' and meta.installation ~= installation and meta.installation ~= former then
  return {'other', meta.installation, meta.holder}
end
if meta.epoch < seen_epoch or (meta.epoch == seen_epoch and meta.seq < seen_seq) then
  return {'behind', text(meta.epoch), text(meta.seq)}
end
local time = now()
if meta.holder ~= holder and meta.lease_end > time then
  -- A lease never ends later than its length from now, unless the clock was set back meanwhile:
  -- then wait for one length and not for the whole step.
  if meta.lease_end > time + meta.ttl then
    meta.lease_end = time + meta.ttl
    call('HSET', KEYS[1], 'until', text(meta.lease_end))
  end
  return {'held', meta.holder, text(math.max(meta.lease_end - time, 1)), meta.about, text(meta.epoch), text(meta.seq)}
end
-- The clock keeps epochs apart that were given before and after the server lost its data.
local epoch = math.max(meta.epoch + 1, time)
call('HSET', KEYS[1], 'epoch', text(epoch), 'owner', owner, 'holder', holder, 'about', about, 'last', '',
  'until', text(time + ttl), 'ttl', text(ttl), 'schema', text(schema),
  'installation', installation)
return {'leader', text(epoch), text(meta.seq)}
