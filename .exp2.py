import sys,time,resource
from tests.bench.planning.sample import sample
from slurm_mig.core.planning import classes, highs, fleet as fl, stage, placing, units as un
from slurm_mig.core.planning.weights import Weights
from slurm_mig.core import demand
import highspy
from time import process_time as now
def go(g,j,prof=False):
    s=sample(g,j)
    reqs=demand.waiting(s.requests)
    if prof: prof.enable()
    t=[now()]
    f=fl.Fleet(s.views,{},{}); t.append(now())
    units=un.units_of(reqs,un.slices_of(f),Weights())
    pools=un.pools_of(f,units)
    places=placing.Places(f,pools)
    start=[u for u in units if places.place(u)]
    ids={id(u) for u in start}
    unmet=[u for u in units if id(u) not in ids]; t.append(now())
    p=classes.problem(f,pools,unmet,Weights()); t.append(now())
    ft=[0,None]
    def solve(P,g):
        a=now(); ft[1]=highs.solve(P,90,g); ft[0]+=now()-a
        return ft[1]
    sol=highs.solve(p.programme,90); t.append(now())
    st=stage.stage(f,stage.Task(pools,unmet,p,sol,Weights(),solve),hard_first=False); t.append(now()); fine=ft[1] or sol
    if prof: prof.disable()
    val=st.value
    P=p.programme
    print(g,j,'nodes',len(f.nodes),'startable',len(start),'classes',len(P.classes),'offers',sum(len(c.offers) for c in P.classes),'groups',len(P.groups),'pools',len(pools.nodes),'cols',sol.columns,'rows',sol.rows,'fine',fine.columns,fine.rows)
    print('  fleet %.3f pre %.3f problem %.3f solve %.3f stage %.3f (fine %.3f) total %.3f'%(*(b-a for a,b in zip(t,t[1:])),ft[0],t[-1]-t[0]))
    print('  value %d gap %g fine %d gap %g served %d/%d; node value %d (gap %.4f) served %d lost %d hulls %d changed gpus %d nodes %d'%(sol.value,sol.gap,fine.value,fine.gap,sum(sol.served),len(unmet),val,1-val/max(1,sol.value),len(st.served),0,st.refused_by_hulls,sum(1 for n in f.nodes for d in n.drafts if d.target),sum(1 for n in f.nodes if any(d.target for d in n.drafts))),flush=True)
    return s
if __name__=='__main__':
    for g,j in ((8,40),(80,200),(800,1000),(8000,10000)): go(g,j)
    if len(sys.argv)>1:
        import cProfile,pstats
        pr=cProfile.Profile(); go(8000,10000,pr); pstats.Stats(pr).sort_stats('tottime').print_stats(30)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
