-- Prolongs the lease. ARGV: epoch, seq, owner, ttl in ms.
local epoch, seq, owner, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local meta = read_meta()
local refusal = deposed(meta, epoch, owner)
if refusal then
  return refusal
end
if meta.epoch ~= epoch or meta.seq < seq then
  return {'lost', text(meta.seq)}
end
call('HSET', KEYS[1], 'until', text(now() + ttl), 'ttl', text(ttl))
return {'done'}
