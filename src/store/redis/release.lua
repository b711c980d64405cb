-- Ends the lease of this reign, if it still rules. ARGV: epoch, owner.
local meta = read_meta()
if meta.epoch == tonumber(ARGV[1]) and meta.owner == ARGV[2] then
  call('HSET', KEYS[1], 'until', '0')
end
return {'done'}
